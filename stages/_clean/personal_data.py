"""E-mail addresses, phone numbers, IBANs, card numbers, US social security numbers and public IP addresses.

A number says little about what it is. So the nearest word before it decides where its form is not enough: `tel.` or
`call` make it a phone number, `order` or `section` do not.
"""

import ipaddress
import re
from functools import cache

from stages._clean.private_kind import PrivateKind

CONTEXT = 48  # characters before a number in which its word is looked for
# Words before a number. They begin where a word begins; a hyphen at the end means that the word may go on.
PHONE_WORDS = (
    "phone- telephone- tel cell cellphone mobile- call- calling fax- whatsapp sms text dial- ring hotline reach "
    "contact telefon- handy mobil- rufnummer- anruf- ruf rufen erreichbar erreichen- durchwahl- tél téléphone- "
    "portable- appel- joindre joignable teléfono- móvil- celular- llam- contacto telefono- cellulare- chiam- "
    "telefone- telemóvel- ligue ligar liga contato telefoon- bel bellen gsm signal telegram viber wechat"
)
OTHER_NUMBERS = (
    "order- part- invoice- article- item- sku serial- isbn issn ean gtin uuid guid ticket- case tracking account- "
    "version- build- section- ref reference- id ids model- catalog- product- no nr release- rfc chapter- page- "
    "clause- patch driver- firmware- revision- bestell- rechnung- artikel- kunden- auftrag- seriennummer- abschnitt- "
    "kapitel- bestellung- commande- facture- pedido- factura- ordine- fattura- encomenda- fatura- référence- "
    "référence réf value- seed hash row rows port pid population- timestamp- unix offset- key user customer- § "
    "paragraph- paragraf- standard- steps- psalm- verse- v ver oid object objectidentifier"
)
ADDRESS_WORDS = (
    "ip ips ipv4 ipv6 host- server- dns address- addr- adresse- ping ssh connect- curl http https login from client- "
    "remote- peer- listen- node- gateway- router- visitor- proxy- machine- rechner- serveur- servidor- user- root"
)
CARD_WORDS = (
    "card- credit- debit- visa mastercard- amex kreditkarte- karte- carte- tarjeta- carta- cartão- maestro cc pan"
)
SSN_WORDS = "ssn social- sozialversicherung- taxpayer- itin"


@cache
def word_pattern(words: str) -> re.Pattern:
    """Returns the pattern of the words. They are casefolded."""
    forms = (rf"{re.escape(word[:-1])}\w*" if word.endswith("-") else re.escape(word) for word in words.split())
    return re.compile(rf"(?<![^\W\d_])(?:{'|'.join(forms)})(?![^\W\d_])")


def last_place(words: str, before: str) -> int:
    """Returns where the last of the words begins in `before`, or -1."""
    return max((match.start() for match in word_pattern(words).finditer(before)), default=-1)


def before_match(match: re.Match) -> str:
    """Returns the casefolded text before the match, from its line only."""
    before = match.string[max(0, match.start() - CONTEXT) : match.start()].rpartition("\n")[2]
    return re.sub(r"<?[A-Z]+>", "", before).casefold()  # <PHONE> of another number is no word of the text


def said_by_word(match: re.Match, words: str) -> bool | None:
    """Whether the nearest word says that the number is what `words` name; None if there is no word."""
    before = before_match(match)
    yes, no = last_place(words, before), last_place(OTHER_NUMBERS, before)
    return None if yes == no == -1 else yes > no


# --- E-mail
LOCAL = r"0-9A-Za-z\u00c0-\u024f\u0370-\u04ff._%+-"  # in front of the @; not Chinese, which has no blank before it
EMAIL = re.compile(
    rf"(?<![{LOCAL}/@])[{LOCAL}](?:'?[{LOCAL}]){{0,63}}@"
    r"(?:[\w-]{1,63}\.){1,8}[^\W\d_]{2,24}(?![\w-]|\.\w|[(\[@])"
)
HIDDEN_EMAIL = re.compile(
    r"(?<![\w.+-])[\w.+-]{1,64} ?[(\[{] ?at ?[)\]}] ?[\w-]{1,63}"
    r"(?: ?(?:[(\[{] ?(?:dot|punkt|point|punto|ponto) ?[)\]}]|\.) ?[\w-]{2,63}){1,4}",
    re.IGNORECASE,
)
# Ends of file names and of code that are also countries or new domains: `react@next.js`, `h@self.id`, `x@model.py`.
CODE_DOMAINS = re.compile(
    r"(?:self|cls|this|np|torch|tf|jnp|math|model|app|module|mod|params|config)\.[\w.]*|"
    r"(?:v\d+|\d+x|main|master|latest|next|dev|beta|canary|index|setup)\.\w+",
    re.IGNORECASE,
)
FILE_ENDS = (
    "js ts py rs rb sh md pl pm cc so ps vb mm mk gz jpg jpeg png gif svg webp bmp ico pdf txt csv json yaml yml toml "
    "xml html htm css scss cpp hpp java class php lock log mp3 mp4 wav zip tar exe dll whl jsx tsx vue ipynb conf cfg "
    "ini weight bias data shape mean grad out real imag dot sum size mat tld route mark fixture setter getter domain "
    "local localhost internal example test invalid lan corp home"
)
SHORT_REAL_ENDS = frozenset(
    ("sh", "rs", "md", "pl", "py", "cc", "so", "ps")
)  # of these, only a domain with no code word counts
EXAMPLE_LOCALS = re.compile(
    r"(?:your|my|the)?[._-]?(?:(?:user|first|last|e?mail|domain|account|company)?[._-]?name|e?mail(?:[._-]?address)?)|"
    r"your[._-].*|your(?:name|mail|email|user|id)\w*|git|x+|user|someone|somebody|foo|bar|baz|"
    r"(?:first|firstname)\.(?:last|lastname)|vorname\.nachname|nom\.prenom|prenom\.nom",
    re.IGNORECASE,
)
EXAMPLE_DOMAINS = re.compile(
    r"(?:.*\.)?(?:example(?:\.\w+)*|(?:your|my)[\w-]*\.\w+|(?:company|domain|email|foo|bar|test|server|host|mail|website|"
    r"site|abc|xyz|provider|organization)\.(?:com|net|org|tld|de|fr|es|it))",
    re.IGNORECASE,
)


def is_email(match: re.Match) -> bool:
    """Whether a mail could reach the address: neither code, nor a file, nor an example of documentation."""
    address, text = match[0], match.string
    local, _, domain = address.rpartition("@")
    after = text[match.end() : match.end() + 2]
    if after[:1] == ":" and after[1:].strip() and not after[1:].isdigit():  # git@host:path
        return False
    end = domain.rpartition(".")[2].lower()
    if CODE_DOMAINS.fullmatch(domain) or (end in FILE_ENDS.split() and (end not in SHORT_REAL_ENDS or len(local) < 3)):
        return False
    if (EXAMPLE_LOCALS.fullmatch(local) and local.lower() != "mail") or EXAMPLE_DOMAINS.fullmatch(domain):
        return False
    return is_deliverable(address)


def is_deliverable(address: str) -> bool:
    from email_validator import EmailNotValidError, validate_email

    try:
        validate_email(address, check_deliverability=False)
    except EmailNotValidError:
        return False
    return True


def is_hidden_email(match: re.Match) -> bool:
    plain = re.sub(r" ?[(\[{] ?at ?[)\]}] ?", "@", match[0], flags=re.IGNORECASE)
    plain = re.sub(r" ?[(\[{] ?(?:dot|punkt|point|punto|ponto) ?[)\]}] ?", ".", plain, flags=re.IGNORECASE)
    domain = plain.rpartition("@")[2]
    return "." in domain and not EXAMPLE_DOMAINS.fullmatch(domain) and is_deliverable(plain)


# --- Phone numbers
JOINT = r"[ \u00a0.\-/]?"
INTERNATIONAL = re.compile(
    rf"(?<![\w.)\]+\-/*=&])(?:\+|00)[1-9][0-9]{{0,2}}(?:{JOINT}[ ]?\(?[0-9]{{1,5}}\)?){{1,6}}(?![\w-]|\.[0-9])"
)
NORTH_AMERICAN = re.compile(
    r"(?<![\w.+/-])(?:1[-. ])?(?:\([0-9]{3}\) ?[0-9]{3}-|[0-9]{3}([-.])[0-9]{3}\1)[0-9]{4}(?![\w-]|\.[0-9])"
)
FRENCH = re.compile(r"(?<![\w.+/-])0[1-9](?:([ .-])[0-9]{2})(?:\1[0-9]{2}){3}(?![\w-]|[ .][0-9])")
# Any other form counts only after a word such as `phone`.
NATIONAL = re.compile(
    rf"(?<![A-Za-z0-9_.+/-])(?=\(?[0-9][0-9 \u00a0./()-]{{5}})"
    rf"\(?[0-9]{{1,5}}\)?(?:{JOINT}[ ]?\(?[0-9]{{1,8}}\)?){{0,6}}(?![\w-]|\.[0-9])"
)
REGIONS = ("US", "GB", "DE", "FR", "ES", "IT", "PT", "IN", "CN", "BR", "NL", "AT", "CH", "PL", "AU", "JP", "MX", "ZA")
MIN_DIGITS, MIN_BARE_DIGITS = 7, 9  # with blanks or hyphens between them, and without
ASIAN_PHONE_WORDS = re.compile(r"电话|手机|電話|携帯|号码|联系")


def digits_of(text: str) -> str:
    return "".join(character for character in text if character.isdigit())


@cache
def phone_library():
    import phonenumbers

    return phonenumbers


def is_number_of(text: str, region: str | None) -> bool:
    """Whether the number can be dialled in the region; None: it has the code of its country."""
    library = phone_library()
    try:
        return library.is_valid_number(library.parse(text, region))
    except library.NumberParseException:
        return False


def is_international(match: re.Match) -> bool:
    text, number = match.string, match[0]
    if said_by_word(match, PHONE_WORDS) is False:
        return False
    line = text[: match.start()].rpartition("\n")[2]
    if not line and re.search(r"^(?:-|@@|\+\+\+)", text, re.MULTILINE):  # a line that a diff adds
        return False
    if number.startswith("00"):
        number = f"+{number[2:]}"
        return len(digits_of(number)) > MIN_DIGITS and re.search(r"\D", number[1:]) and is_number_of(number, None)
    if re.search(r"[\d\w)] $", line[-2:]) and re.search(r"\d $", line):  # 5 +123 456 789
        return False
    return is_number_of(number, None)


def is_north_american(match: re.Match) -> bool:
    return said_by_word(match, PHONE_WORDS) is not False and is_number_of(match[0], "US")


def is_french(match: re.Match) -> bool:
    pairs = [int(pair) for pair in re.findall(r"\d\d", match[0])]
    if pairs == list(range(pairs[0], pairs[0] + len(pairs))):  # 01 02 03 04 05
        return False
    return said_by_word(match, PHONE_WORDS) is not False and is_number_of(match[0], "FR")


def is_national(match: re.Match) -> bool:
    """Whether a word such as `phone` stands before the number, and a country has such numbers."""
    number = match[0]
    if not (MIN_BARE_DIGITS if number.isdigit() else MIN_DIGITS) <= len(digits_of(number)) <= 13 or re.fullmatch(
        r"\d{4}[-./]\d\d?[-./]\d\d?|\d\d?[-./]\d\d?[-./]\d{4}\b.*|\d{1,3}(?:\.\d{1,3}){3}", number
    ):
        return False
    if not said_by_word(match, PHONE_WORDS) and not ASIAN_PHONE_WORDS.search(before_match(match)[-8:]):
        return False
    return any(is_number_of(number, region) for region in REGIONS)


# --- Numbers with check digits
IBAN = re.compile(
    r"[A-Z](?<![^\W]\w)(?<!\w[A-Z])[A-Z][0-9]{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?![A-Za-z0-9])"
)
CARD = re.compile(
    r"(?<![\w.+/-])[2-6][0-9]{3}(?:([ -])[0-9]{4}\1[0-9]{4}\1[0-9]{4}|([ -])[0-9]{6}\2[0-9]{5}|[0-9]{11,12})"
    r"(?![\w-]|\.[0-9])"
)
SSN = re.compile(r"(?<![\w.+/-])(?!000|666|9)[0-9]{3}-(?!00)[0-9]{2}-(?!0000)[0-9]{4}(?![\w-])")


def is_iban(match: re.Match) -> bool:
    """Whether the check digits and the length are those of the country (ISO 13616)."""
    from stdnum import iban

    return iban.is_valid(match[0], check_country=False)


def is_card(match: re.Match) -> bool:
    """Whether the check digit is right (Luhn), and a word or the groups of four say that it is a card."""
    from stdnum import luhn

    said = said_by_word(match, CARD_WORDS)
    return said is not False and (said or not match[0].isdigit()) and luhn.is_valid(digits_of(match[0]))


def is_ssn(match: re.Match) -> bool:
    return bool(said_by_word(match, SSN_WORDS))


# --- IP addresses
IPV4 = re.compile(r"(?:(?<![\w.:/-])|(?<=://))[0-9]{1,3}(?:\.[0-9]{1,3}){3}(?![\w-]|\.[0-9])")
IPV6 = re.compile(r"(?<![\w.:])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w:]|\.\d)")
UNICAST = ipaddress.ip_network("2000::/3")  # all that is routed on the Internet
# The resolvers that everybody names.
PUBLIC_RESOLVERS = (
    "1.1.1.1 1.0.0.1 8.8.8.8 8.8.4.4 9.9.9.9 149.112.112.112 208.67.222.222 208.67.220.220 2606:4700:4700::1111 "
    "2606:4700:4700::1001 2001:4860:4860::8888 2001:4860:4860::8844 2620:fe::fe"
)
LARGE_PART = 60  # versions and sections have hardly any number from here on


def is_public_ipv4(match: re.Match) -> bool:
    said = said_by_word(match, ADDRESS_WORDS)
    after_scheme = match.string[max(0, match.start() - 3) : match.start()] == "://"
    if said is False and not after_scheme:
        return False
    large = sum(int(part) >= LARGE_PART for part in match[0].split("."))
    return (said or after_scheme or large >= 2) and is_public_address(match[0])


def is_public_ipv6(match: re.Match) -> bool:
    if match[0].count(":") <= 2:  # code such as a[::2] and b::c
        return False
    return is_public_address(match[0]) and ipaddress.ip_address(match[0]) in UNICAST


def is_public_address(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).is_global and text.lower() not in PUBLIC_RESOLVERS.split()
    except ValueError:
        return False


STEMS = (
    "phone|tel|call|fax|sms|text|dial|ring|hotline|reach|contact|"
    "handy|mobil|ruf|erreich|durchwahl|tél|portable|appel|join|móvil|celular|cell|llam|chiam|lig|contat|bel|gsm|whatsapp|signal|viber|wechat"
)
# The words stand in the line of the number, before it.
SAID_PHONE = re.compile(f"(?i:{STEMS}|电话|手机|電話|携帯|号码|联系)[^\n]*[0-9][0-9 \u00a0./()-]{{5}}")
SAID_SSN = re.compile(r"(?i:ssn|social|sozialv|taxpayer|itin)[^\n]*-[0-9]{2}-[0-9]{4}")
FOURTEEN_DIGITS = re.compile(r"[2-6][0-9]{3}[ -]?[0-9]{4}[ -]?[0-9]{2}")
PERSONAL_KINDS = (
    PrivateKind("EMAIL", EMAIL, 0, is_email, (re.compile(r"[^\s]@[^\s@.]+\."),)),
    PrivateKind("EMAIL", HIDDEN_EMAIL, 0, is_hidden_email, (re.compile(r"[(\[{] ?(?i:at) ?[)\]}]"),)),
    PrivateKind("IBAN", IBAN, 0, is_iban, (re.compile(r"[A-Z]{2}[0-9]{2} ?[A-Z0-9]{4} ?[A-Z0-9]{4}"),)),
    PrivateKind("SSN", SSN, 0, is_ssn, (SAID_SSN,)),
    PrivateKind("IP", IPV4, 0, is_public_ipv4, (re.compile(r"[0-9]\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]"),)),
    PrivateKind("IP", IPV6, 0, is_public_ipv6, (re.compile(r":[0-9A-Fa-f]{0,4}:[0-9A-Fa-f]{0,4}:"),)),
    PrivateKind("PHONE", INTERNATIONAL, 0, is_international, (re.compile("(?:\\+|00)[1-9][0-9 \u00a0./()-]{5}"),)),
    PrivateKind("CARD", CARD, 0, is_card, (FOURTEEN_DIGITS,)),
    PrivateKind("PHONE", NORTH_AMERICAN, 0, is_north_american, (re.compile(r"[0-9]{3}\)?[ .-]?[0-9]{3}[.-][0-9]{4}"),)),
    PrivateKind("PHONE", FRENCH, 0, is_french, (re.compile(r"0[1-9][ .-][0-9]{2}[ .-][0-9]{2}[ .-]"),)),
    PrivateKind("PHONE", NATIONAL, 0, is_national, (SAID_PHONE,)),
)
