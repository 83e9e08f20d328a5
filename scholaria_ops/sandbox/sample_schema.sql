-- The application's final schema, as its migrations leave it: tables first, everything that is faster to make once the
-- rows are there in sample_indexes.sql. Run by the owning role.

CREATE TABLE alembic_version (
    version_num varchar(32) NOT NULL
);

CREATE TABLE auth_user (
    id serial NOT NULL,
    username varchar(150) NOT NULL,
    email varchar(254) NOT NULL,
    password varchar(128) NOT NULL,
    first_name varchar(150) NOT NULL DEFAULT '',
    last_name varchar(150) NOT NULL DEFAULT '',
    is_active boolean NOT NULL DEFAULT true,
    is_staff boolean NOT NULL DEFAULT false,
    is_superuser boolean NOT NULL DEFAULT false,
    date_joined timestamptz NOT NULL DEFAULT now(),
    last_login timestamptz
);

CREATE TABLE rag_topic (
    id serial NOT NULL,
    name varchar(200) NOT NULL,
    slug varchar(220) NOT NULL,
    description text NOT NULL DEFAULT '',
    system_prompt text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE rag_context (
    id serial NOT NULL,
    name varchar(200) NOT NULL,
    description text NOT NULL DEFAULT '',
    context_type varchar(20) NOT NULL,
    original_content text,
    uploaded_file varchar(500),
    processing_status varchar(20) NOT NULL DEFAULT 'PENDING',
    chunk_count integer NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE rag_topic_contexts (
    id bigserial NOT NULL,
    topic_id integer NOT NULL,
    context_id integer NOT NULL
);

CREATE TABLE rag_contextitem (
    id bigserial NOT NULL,
    title varchar(300) NOT NULL,
    content text NOT NULL,
    context_id integer NOT NULL,
    file_path varchar(500),
    uploaded_file varchar(500),
    metadata jsonb NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE rag_questionhistory (
    id bigserial NOT NULL,
    public_id uuid NOT NULL DEFAULT uuid_generate_v4(),
    topic_id integer NOT NULL,
    user_id integer,
    session_id varchar(100) NOT NULL,
    question text NOT NULL,
    answer text NOT NULL,
    feedback_score smallint,
    feedback_comment text,
    latency_ms double precision,
    cost numeric(12, 6) NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT now()
);
