"""How products are found: each word of a search somewhere in the text of a product, without accents and case.

The service fills two columns: the text, and the pieces of one to three characters of its words, which a GIN index
finds. The pieces are not pg_trgm's: that makes none of words under three characters, and in a database with the
locale C none of letters that are not ASCII.
"""

import unicodedata

from contracts.names import strip_invisible

MAX_PIECE_LENGTH = 3
# Letters with a stroke and the like have no decomposition.
BASE_LETTERS = str.maketrans(
    {"ø": "o", "ł": "l", "đ": "d", "ð": "d", "ħ": "h", "ı": "i", "þ": "th", "æ": "ae", "œ": "oe"}
)


def search_words(text):
    """The words that a text is found by, with single spaces between them."""
    plain = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
    # By their combining class: marks of class 0 are vowels in some scripts, and no accents.
    plain = "".join(character for character in plain if not unicodedata.combining(character))
    return " ".join(unicodedata.normalize("NFC", strip_invisible(plain).translate(BASE_LETTERS)).split())


def pieces(words):
    """All pieces of 1 to 3 characters that the words have. words: as `search_words` returns them."""
    return sorted(
        {
            word[at : at + size]
            for word in words.split()
            for size in range(1, MAX_PIECE_LENGTH + 1)
            for at in range(len(word))
        }
    )


def search_columns(*texts):
    """{search_text, search_pieces} of a product's texts, of which some may be None."""
    text = search_words("\n".join(filter(None, texts)))
    return {"search_text": text, "search_pieces": pieces(text)}


def search_conditions(product, search):
    """The conditions of a search. product: the class that has the columns."""
    words = search_words(search).split()
    if words:
        sizes = [(word, min(MAX_PIECE_LENGTH, len(word))) for word in words]
        wanted = {word[at : at + size] for word, size in sizes for at in range(len(word) - size + 1)}
        yield product.search_pieces.contains(sorted(wanted))
    for word in words:
        if len(word) > MAX_PIECE_LENGTH:
            yield product.search_text.contains(word, autoescape=True)
