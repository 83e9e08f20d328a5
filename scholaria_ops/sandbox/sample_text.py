"""Deterministic Korean and English text: the same chunk number always gives the same words, in any order of asking.

The text is made of words drawn by Zipf's law from a fixed vocabulary, so that it compresses about as well as prose.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

#: Chunks are made in blocks of this many; a block is the unit of random access.
BLOCK = 500
EPOCH = datetime(2024, 3, 1, 9, 0, tzinfo=UTC)
CONTEXT_TYPES = ("PDF", "MARKDOWN", "FAQ")


def _words(text: str) -> list[str]:
    return text.split()


_KO_STEMS = _words("""
    강의 과제 논문 연구 실험 자료 질문 답변 주제 문서 학습 평가 이론 모형 가설 변수 통계 분석 결과 방법 역사 문화 사회 경제 정치 철학
    윤리 과학 기술 공학 수학 물리 화학 생물 의학 심리 교육 언어 문학 예술 음악 환경 기후 에너지 데이터 알고리즘 프로그램 네트워크 보안
    인공지능 도서관 대학 학생 교수 학기 시험 토론 발표 보고서 참고문헌 초록 서론 본론 결론 도표 그림 부록
""")
_KO_ENDINGS = _words("은 이 을 의 에 에서 으로 와 도 만 부터 까지 에게 보다 처럼 이다 이며 에는")
_EN_STEMS = _words("""
    lecture paper study method result theory model variable sample measure argument evidence source question answer topic document
    chapter section figure table student teacher library archive history culture society economy policy ethics science physics
    chemistry biology medicine language literature music climate energy data algorithm network protocol index vector query context
    retrieval passage summary abstract reference experiment hypothesis analysis regression correlation cluster gradient kernel
""")
_EN_FILL = _words("the of and to in a is that for with as on by from which this are be or not between within because while than")
_EN_ENDINGS = ("", "s", "al", "ing", "ed", "er", "ity", "ful", "less", "wise")
_LATIN = [a + b for a in _words("b c d f g h k l m n p r s t v w st tr pl ch") for b in _words("a e i o u an en or ess it")]
_ZIPF_SLOTS = 1 << 16
_Table = tuple[Sequence[str], float]
#: What trips up naive escaping somewhere between COPY, JSON and a shell; every block holds it once.
_AWKWARD = "tab\there, back\\slash, \\N, \"quotes\" and 'apostrophes', 100 %, $1, {}, emoji 😀, 한글\n둘째 줄, ﬁn."


@dataclass(frozen=True, slots=True)
class Chunk:
    """One row of ``rag_contextitem``, which is also one point in Qdrant."""

    id: int
    context_id: int
    context_type: str
    title: str
    content: str
    page: int
    created_at: datetime


def chunks(count: int, contexts: int, seed: int, *, start: int = 0, bytes_each: int = 3000) -> Iterator[list[Chunk]]:
    """Blocks of chunks number ``start`` (a multiple of the block size) up to ``count``; ids begin at 1."""
    for first in range(start, count, BLOCK):
        yield _block(first, min(BLOCK, count - first), contexts, seed, bytes_each)


def context_type(context_id: int) -> str:
    return CONTEXT_TYPES[context_id % len(CONTEXT_TYPES)]


def _block(first: int, size: int, contexts: int, seed: int, bytes_each: int) -> list[Chunk]:
    import numpy as np

    rng = np.random.default_rng((seed, first))
    korean, english = _vocabulary(seed)
    made = []
    for number in range(first + 1, first + size + 1):
        context_id = (number - 1) % contexts + 1
        is_korean = context_id % 5 != 0
        words, average = korean if is_korean else english
        length = max(4, int(bytes_each / average * rng.uniform(0.9, 1.1)))
        text = " ".join([words[i] for i in rng.integers(0, _ZIPF_SLOTS, length).tolist()])
        if number == first + 1:
            text = f"{text}\n{_AWKWARD}"
        title = f"{words[number * 7 % _ZIPF_SLOTS]} {words[number * 13 % _ZIPF_SLOTS]} {number}"
        made.append(
            Chunk(number, context_id, context_type(context_id), title, text, number // contexts + 1, EPOCH + timedelta(seconds=37 * number))
        )
    return made


@functools.lru_cache(maxsize=2)
def _vocabulary(seed: int) -> tuple[_Table, _Table]:
    """Frequent real words and a long tail of rare ones (names, terms): without the tail the text would compress far too well."""
    import numpy as np

    rng = np.random.default_rng(seed)
    syllables = [chr(0xAC00 + int(i)) for i in rng.permutation(11172)[:900]]
    korean = _drawn([stem + end for stem in _KO_STEMS for end in _KO_ENDINGS], 200, seed) + _tail(syllables, 3, 20_000, seed)
    english = _EN_FILL + _drawn([stem + end for stem in _EN_STEMS for end in _EN_ENDINGS], 200, seed) + _tail(_LATIN, 4, 20_000, seed)
    return _zipf(korean), _zipf(english)


def _tail(pieces: Sequence[str], longest: int, count: int, seed: int) -> list[str]:
    import numpy as np

    rng = np.random.default_rng(seed)
    return [
        "".join([pieces[i] for i in rng.integers(0, len(pieces), length).tolist()])
        for length in rng.integers(1, longest + 1, count).tolist()
    ]


def _drawn(words: list[str], count: int, seed: int) -> list[str]:
    import numpy as np

    return [words[i] for i in np.random.default_rng(seed).permutation(len(words))[:count].tolist()]


def _zipf(words: list[str]) -> _Table:
    """A table in which the n-th word fills a share of slots proportional to 1/(n + 40): a uniform draw from it is nearly Zipf's.

    (Mandelbrot's offset keeps the commonest words from filling the text; gzip reaches a factor of 2.4.) With it comes the
    mean size of a drawn word in bytes.
    """
    import numpy as np

    weights = 1.0 / (np.arange(len(words)) + 40.0)
    slots = np.searchsorted(np.cumsum(weights / weights.sum()), (np.arange(_ZIPF_SLOTS) + 0.5) / _ZIPF_SLOTS)
    table = [words[min(i, len(words) - 1)] for i in slots.tolist()]
    return table, sum(len(word.encode()) + 1 for word in table) / _ZIPF_SLOTS
