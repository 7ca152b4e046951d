"""Finds passwords, tokens and signatures in a web address. Git and dvc.lock would keep them."""

import re
import unicodedata
from urllib.parse import unquote_plus, urlsplit

# A parameter is refused if one of the words of its name is one of these. apiKey has the words api and key.
WORDS = {
    *("key", "keys", "token", "sig", "sign", "pass", "pwd", "pw", "psw", "auth", "authn", "authz", "jwt", "jws", "jwe"),
    *("cred", "creds", "bearer", "cookie", "sess", "sid", "sas", "otp", "totp", "pin"),
    # names in the signed addresses of Azure, Google and Akamai
    *("sp", "se", "sv", "ske", "skt", "skv", "skoid", "sktid", "signedheaders", "hdnts", "hdnea", "hdntl", "gda"),
}
# A name that contains one of these is refused too. tokenizer, secretary and author are ordinary.
PARTS = re.compile(
    r"token(?!i[sz])|secret(?!ar)|passw|passphrase|signature|credential|hmac|session|sessid|accessid|auth(?!or(?!i[sz]))|"
    r"accesskey|apikey|keyid|(?:key|keys|pass)$"
)
ORDINARY = re.compile(
    r"(?:mon|don|tur|hoc|joc|whis|lac|mic|malar|hot)keys?|keywords?|(?:com|by|over|under|tres|sur)pass"
)
VENDORS = re.compile(r"x[\W_]?(?:amz|goog|ms|oss|cos|obs)[\W_]")
# An address that is good for some time only is signed, whatever the name of its signature is.
ENDS, SIGNS = {"expires", "expiry", "exp"}, {"md5", "hash", "digest", "mac", "policy", "st"}
# Values that are credentials, whatever their names are: a JWT, or a token with its vendor's prefix.
VALUES = re.compile(
    r"eyJ[\w-]{8,}\.eyJ|gh[pousr]_\w{16}|github_pat_\w{16}|hf_\w{16}|glpat-[\w-]{16}|npm_\w{16}|pypi-\w{16}"
    r"|(?:AKIA|ASIA)[A-Z0-9]{12}|sk-[\w-]{16}|xox[abeprs]-|AIza[\w-]{16}|-----BEGIN"
)
FUNCTION_KEY = re.compile(r"[\w+/=-]{20,}")  # Azure's functions take it as `code`
MOST_DECODINGS = 5


def decode_address(text: str) -> str:
    """Removes percent signs, also those of an address within an address, and folds letters that look alike."""
    for _ in range(MOST_DECODINGS):
        text = unquote_plus(text)
    return unicodedata.normalize("NFKC", text)


def names_credential(name: str) -> bool:
    """Tells whether a parameter is named like a password, token, key or signature, in any case and spelling."""
    joined = re.sub(r"[\W\d_]", "", name).lower()
    if ORDINARY.fullmatch(joined):
        return False
    words = {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)}
    words |= set(re.split(r"[\W\d_]+", name.lower())) | {joined}
    long = (word for word in words if not ORDINARY.fullmatch(word))
    return bool(words & WORDS or any(map(PARTS.search, long)) or VENDORS.match(name.lower()))


def holds_credentials(url: str) -> bool:
    """Tells whether a web address holds a credential.

    It looks for a user's name, for the names of parameters in query, fragment and path, and for known kinds of values.
    """
    text = decode_address(url)
    try:
        hosts = urlsplit(url).netloc + urlsplit(text).netloc
    except ValueError:  # not a URL: every @ and ? counts as a bad sign
        return "@" in text or "?" in text
    if "@" in decode_address(hosts) or re.search(r"[:/\\]{2}[^/?#]*@", text) or VALUES.search(text):
        return True
    if not hosts and "@" in text:
        return True
    # An address in the value of a parameter has parameters too.
    pairs = [pair.partition("=") for pair in re.split(r"[?#&;/]", text)]
    query = {name for pair in re.split(r"[?#&;]", text)[1:] for name in [pair.partition("=")[0]]}
    named = query | {name for name, equals, _ in pairs if equals}
    signed = {name.strip().lower() for name in named}
    function_key = any(name.lower() == "code" and FUNCTION_KEY.fullmatch(value) for name, _, value in pairs)
    return any(map(names_credential, named)) or function_key or bool(signed & ENDS and signed & SIGNS)
