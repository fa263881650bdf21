"""Search for products: each word of a search must be in the text of a product, without accents and case.

The service fills two columns: the text, and the pieces of one to three characters of its words, with a GIN index.
pg_trgm is not used: it finds no words shorter than three characters, and in a database with the locale C no letters
outside of ASCII.
"""

import unicodedata
from collections.abc import Iterator
from typing import Any

from sqlalchemy import ColumnElement

from contracts.names import strip_invisible

MAX_PIECE_LENGTH = 3
# Letters that Unicode does not decompose, such as those with a stroke.
BASE_LETTERS = str.maketrans(
    {"ø": "o", "ł": "l", "đ": "d", "ð": "d", "ħ": "h", "ı": "i", "þ": "th", "æ": "ae", "œ": "oe"}
)


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


def search_conditions(product: Any, search: str) -> Iterator[ColumnElement[bool]]:
    """The conditions of a search. product: the model or table with the search columns."""
    words = search_words(search).split()
    if words:
        sizes = [(word, min(MAX_PIECE_LENGTH, len(word))) for word in words]
        wanted = {word[at : at + size] for word, size in sizes for at in range(len(word) - size + 1)}
        yield product.search_pieces.contains(sorted(wanted))
    for word in words:
        if len(word) > MAX_PIECE_LENGTH:
            yield product.search_text.contains(word, autoescape=True)
