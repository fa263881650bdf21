"""Search for products: each word of a search must be in the text of a product, without accents and case.

The service fills two columns: the text, and the pieces of one to three characters of its words, with a GIN index.
pg_trgm is not used: it finds no words shorter than three characters, and in a database with the locale C no letters
outside of ASCII.
"""

import unicodedata
from typing import Any

from contracts.names import strip_invisible
from services.reading import pattern_of

MAX_PIECE_LENGTH = 3
# Letters that Unicode does not decompose, such as those with a stroke.
BASE_LETTERS = str.maketrans(
    {"ø": "o", "ł": "l", "đ": "d", "ð": "d", "ħ": "h", "ı": "i", "þ": "th", "æ": "ae", "œ": "oe"}
)
# The condition of a search. A subquery hides the pieces from the planner. It would read the whole table for words that
# many products have, because it underestimates the cost of reading the pieces of each row: with 100,000 rows that takes
# 0.5 s, the index 0.1 s.
SEARCH = "search_pieces @> (SELECT %(pieces)s::text[]) AND search_text LIKE ALL (%(patterns)s::text[])"


def search_words(text: str) -> str:
    """The words by which a text is found, with single spaces between them."""
    plain = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
    # By combining class: marks of class 0 are vowels in some scripts, not accents.
    plain = "".join(character for character in plain if not unicodedata.combining(character))
    return " ".join(unicodedata.normalize("NFC", strip_invisible(plain).translate(BASE_LETTERS)).split())


def pieces(words: str) -> list[str]:
    """All pieces of 1 to 3 characters of the words. words: as `search_words` returns them."""
    return sorted(
        {
            word[at : at + size]
            for word in words.split()
            for size in range(1, MAX_PIECE_LENGTH + 1)
            for at in range(len(word))
        }
    )


def search_columns(*texts: str | None) -> dict[str, Any]:
    """{search_text, search_pieces} of a product's texts."""
    text = search_words("\n".join(filter(None, texts)))
    return {"search_text": text, "search_pieces": pieces(text)}


def search_parameters(search: str) -> dict[str, list[str]]:
    """The parameters of SEARCH, none for a search without words."""
    words = search_words(search).split()
    if not words:
        return {}
    sizes = [(word, min(MAX_PIECE_LENGTH, len(word))) for word in words]
    wanted = {word[at : at + size] for word, size in sizes for at in range(len(word) - size + 1)}
    return {
        "pieces": sorted(wanted),
        "patterns": [pattern_of(word) for word in words if len(word) > MAX_PIECE_LENGTH],
    }
