ALTER TABLE alembic_version ADD CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num);
ALTER TABLE auth_user ADD PRIMARY KEY (id);
ALTER TABLE rag_topic ADD PRIMARY KEY (id);
ALTER TABLE rag_context ADD PRIMARY KEY (id);
ALTER TABLE rag_topic_contexts ADD PRIMARY KEY (id);
ALTER TABLE rag_contextitem ADD PRIMARY KEY (id);
ALTER TABLE rag_questionhistory ADD PRIMARY KEY (id);

ALTER TABLE auth_user ADD CONSTRAINT auth_user_username_key UNIQUE (username);
CREATE UNIQUE INDEX ix_auth_user_email ON auth_user (lower(email));
ALTER TABLE rag_topic ADD CONSTRAINT rag_topic_slug_key UNIQUE (slug);
ALTER TABLE rag_topic_contexts ADD CONSTRAINT rag_topic_contexts_topic_context_key UNIQUE (topic_id, context_id);
ALTER TABLE rag_questionhistory ADD CONSTRAINT rag_questionhistory_public_id_key UNIQUE (public_id);

ALTER TABLE rag_context ADD CONSTRAINT rag_context_type_check CHECK (context_type IN ('PDF', 'MARKDOWN', 'FAQ'));
ALTER TABLE rag_context ADD CONSTRAINT rag_context_status_check CHECK (processing_status IN ('PENDING', 'PROCESSING', 'COMPLETED', 'FAILED'));
ALTER TABLE rag_questionhistory ADD CONSTRAINT rag_questionhistory_score_check CHECK (feedback_score BETWEEN -1 AND 1);

ALTER TABLE rag_topic_contexts ADD CONSTRAINT rag_topic_contexts_topic_id_fkey
    FOREIGN KEY (topic_id) REFERENCES rag_topic (id) ON DELETE CASCADE;
ALTER TABLE rag_topic_contexts ADD CONSTRAINT rag_topic_contexts_context_id_fkey
    FOREIGN KEY (context_id) REFERENCES rag_context (id) ON DELETE CASCADE;
ALTER TABLE rag_contextitem ADD CONSTRAINT rag_contextitem_context_id_fkey
    FOREIGN KEY (context_id) REFERENCES rag_context (id) ON DELETE CASCADE;
ALTER TABLE rag_questionhistory ADD CONSTRAINT rag_questionhistory_topic_id_fkey
    FOREIGN KEY (topic_id) REFERENCES rag_topic (id) ON DELETE CASCADE;
ALTER TABLE rag_questionhistory ADD CONSTRAINT rag_questionhistory_user_id_fkey
    FOREIGN KEY (user_id) REFERENCES auth_user (id) ON DELETE SET NULL DEFERRABLE INITIALLY DEFERRED;

CREATE INDEX ix_rag_contextitem_context_id ON rag_contextitem (context_id);
CREATE INDEX ix_rag_contextitem_title_trgm ON rag_contextitem USING gin (title gin_trgm_ops);
CREATE INDEX ix_rag_contextitem_metadata ON rag_contextitem USING gin (metadata jsonb_path_ops);
CREATE INDEX ix_rag_topic_contexts_context_id ON rag_topic_contexts (context_id);
CREATE INDEX ix_rag_questionhistory_topic_created ON rag_questionhistory (topic_id, created_at DESC);
CREATE INDEX ix_rag_questionhistory_session_id ON rag_questionhistory (session_id);
CREATE INDEX ix_rag_questionhistory_unhappy ON rag_questionhistory (created_at) WHERE feedback_score = -1;

CREATE FUNCTION touch_updated_at() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.updated_at := now();
    RETURN NEW;
END
$$;
CREATE TRIGGER rag_topic_touch BEFORE UPDATE ON rag_topic FOR EACH ROW EXECUTE FUNCTION touch_updated_at();
CREATE TRIGGER rag_context_touch BEFORE UPDATE ON rag_context FOR EACH ROW EXECUTE FUNCTION touch_updated_at();
CREATE TRIGGER rag_contextitem_touch BEFORE UPDATE ON rag_contextitem FOR EACH ROW EXECUTE FUNCTION touch_updated_at();

CREATE VIEW rag_topic_overview AS
SELECT t.id, t.name, count(DISTINCT tc.context_id) AS contexts, count(i.id) AS items
FROM rag_topic t
LEFT JOIN rag_topic_contexts tc ON tc.topic_id = t.id
LEFT JOIN rag_contextitem i ON i.context_id = tc.context_id
GROUP BY t.id, t.name;

COMMENT ON TABLE rag_contextitem IS 'Text chunks; id is also the point id in the vector index (문서 조각)';
