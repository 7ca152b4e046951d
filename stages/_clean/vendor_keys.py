"""The keys and tokens that vendors issue, in the form that each vendor documents, and where passwords stand."""

import json
import re
from base64 import urlsafe_b64decode

from stages._clean.private_kind import PrivateKind, is_placeholder

B62 = "[A-Za-z0-9]"
HEX = "[0-9a-f]"
# {what every such key has, once it is casefolded: its pattern}. The patterns have no upper bound, because vendors make
# their keys longer from time to time.
FORMS = {
    # Code and packages
    (re.compile("gh[pousr]_"),): rf"gh[pousr]_{B62}{{36,}}",
    ("github_pat_",): rf"github_pat_{B62}{{22}}_{B62}{{50,}}",
    (re.compile("gl[a-z]{2,5}-"),): (
        r"gl(?:pat|dt|ft|soat|rt|cbt|imt|ptt|agent|ffct|oas)-[\w-]{20,}(?:\.[\w-]{2,}){0,2}"
    ),
    ("gr1348941",): r"GR1348941[\w-]{20,}",
    ("npm_",): rf"npm_{B62}{{36,}}",
    ("pypi-age",): r"pypi-AgE[\w-]{50,}",
    ("rubygems_",): rf"rubygems_{HEX}{{48}}",
    ("dckr_",): r"dckr_(?:pat|oat)_[\w-]{27,}",
    ("atatt3",): r"ATATT3[\w=-]{60,}",
    ("atctt3",): r"ATCTT3[\w=-]{60,}",
    ("atbb",): rf"ATBB{B62}{{32}}",
    # Models
    ("sk-ant-",): r"sk-ant-[a-z]{3,5}\d\d-[\w-]{60,}",
    (re.compile("sk-[a-zN]+-"),): r"sk-(?:proj|svcacct|admin|None)-[\w-]{40,}",
    ("t3blbkfj",): rf"sk-{B62}{{20}}T3BlbkFJ{B62}{{20}}",
    ("sk-or-v1-",): rf"sk-or-v1-{HEX}{{64}}",
    ("hf_",): rf"hf_{B62}{{34,}}",
    ("api_org_",): rf"api_org_{B62}{{34,}}",
    ("gsk_",): rf"gsk_{B62}{{50,}}",
    ("xai-",): rf"xai-{B62}{{70,}}",
    ("pplx-",): rf"pplx-{B62}{{48,}}",
    ("r8_",): rf"r8_{B62}{{37,}}",
    ("nvapi-",): r"nvapi-[\w-]{60,}",
    # Clouds
    (re.compile("A(?:KIA|SIA|BIA|CCA)[A-Z0-9]"),): r"A(?:KIA|SIA|BIA|CCA)[A-Z0-9]{16}(?![A-Z0-9])",
    ("aiza",): r"AIza[\w-]{35}",
    ("gocspx-",): r"GOCSPX-[\w-]{28}",
    ("ya29.",): r"ya29\.[\w-]{30,}",
    ("1//0",): r"1//0[\w-]{40,}",
    ("q~",): r"[\w~.-]{3}\dQ~[\w~.-]{31,34}",
    ("_v1_",): rf"do[opr]_v1_{HEX}{{64}}",
    ("dapi",): rf"dapi{HEX}{{32}}(?:-\d)?",
    (re.compile(r"hv[sbr]\."),): r"hv[sbr]\.[\w-]{24,}",
    (".atlasv1.",): rf"{B62}{{14}}\.atlasv1\.[\w-]{{60,}}",
    ("pul-",): rf"pul-{HEX}{{40}}",
    ("dp.",): rf"dp\.(?:pt|st|ct|sa)\.(?:[\w-]+\.)?{B62}{{40,}}",
    ("sbp_",): rf"sbp_{HEX}{{40}}",
    ("hrku-",): r"HRKU-[\w-]{36,}",
    ("nfp_",): rf"nfp_{B62}{{36,}}",
    ("age-secret-key-1",): r"AGE-SECRET-KEY-1[A-Z0-9]{58}",
    # Messages
    ("xox",): r"xox[abeoprs](?:\.xox[bp])?-[\w-]{20,}",
    ("xapp-",): r"xapp-\d-[\w-]{40,}",
    ("hooks.slack.com/",): (
        rf"hooks\.slack\.com/(?:services/T{B62}{{6,}}/B{B62}{{6,}}|workflows/T{B62}{{6,}}/A{B62}{{6,}}/\d+)/{B62}{{18,}}"
    ),
    ("/api/webhooks/",): r"discord(?:app)?\.com/api/webhooks/\d{17,20}/[\w-]{60,}",
    (re.compile(r"\.[\w-]{6}\.[\w-]{27}"),): r"[MNO][\w-]{23,27}\.[\w-]{6}\.[\w-]{27,38}",
    (re.compile(r":AA[\w-]{33}"),): r"\d{8,10}:AA[\w-]{33}(?![\w-])",
    ("sg.",): r"SG\.[\w-]{22}\.[\w-]{43}",
    ("key-",): rf"key-{HEX}{{32}}(?![0-9a-z])",
    ("-us",): rf"{HEX}{{32}}-us\d{{1,2}}(?!\w)",
    # Money and shops
    ("_live_", "_test_"): rf"[sr]k_(?:live|test)_{B62}{{16,}}",
    ("whsec_",): r"whsec_[A-Za-z0-9+/=]{32,}",
    (re.compile("shp[a-z]{2,3}_"),): r"shp(?:at|ca|pa|ss|tka)_[0-9a-fA-F]{32}",
    ("sq0",): r"sq0(?:atp|csp)-[\w-]{22,}",
    ("eaaa",): r"EAAA[a-zA-Z0-9_-]{60}(?![\w-])",
    # Work
    ("lin_api_",): rf"lin_api_{B62}{{40}}",
    ("ntn_",): rf"ntn_{B62}{{40,}}",
    ("figd_",): r"figd_[\w-]{40,}",
    ("pmak-",): rf"PMAK-{HEX}{{24}}-{HEX}{{34}}",
    ("glsa_",): rf"glsa_{B62}{{32}}_[0-9a-fA-F]{{8}}",
    ("glc_ey",): r"glc_ey[A-Za-z0-9+/=]{32,}",
    ("nrak-",): r"NRAK-[A-Z0-9]{27}",
    ("sntry",): r"sntry(?:s_eyJ[\w+/=-]{60,}|u_[0-9a-f]{64})",
    (re.compile(r"pat[A-Za-z0-9]{14}\."),): rf"pat{B62}{{14}}\.{HEX}{{64}}",
}
MOST_JOINTS = 3  # a value with more of - _ / is words or a path
PRIVATE_KEY_GAP = r"(?:\s|\\[nr]|[\"'+,])*"  # between the lines of a key, which may stand in code or in JSON
PRIVATE_KEY = re.compile(
    rf"-----BEGIN[A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----{PRIVATE_KEY_GAP}(?:[A-Z][\w-]*: [^\n\\]*(?:\s|\\[nr])+)*"
    rf"([A-Za-z0-9+/=]{{24,}}(?:{PRIVATE_KEY_GAP}[A-Za-z0-9+/=]{{24,}})*)"
    rf"(?:(?:{PRIVATE_KEY_GAP}[A-Za-z0-9+/=]+){{0,2}}{PRIVATE_KEY_GAP}-----END[A-Z0-9 ]*-----)?"
)
KEY_CHARACTERS = 60  # the fewest of a private key; those of Ed25519 have 64
JWT = re.compile(r"(?<![\w.-])eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{20,}")
ASSIGNED = r"(?:\\?[\"'])?\s*(?::=|=>|=|:)\s*(?:\\?[\"'])?"  # between a name and its value, in code, JSON and .env
AWS_SECRET = re.compile(
    rf"aws[_-]?(?:secret)?[_-]?(?:access)?[_-]?key[\w-]*{ASSIGNED}([A-Za-z0-9/+]{{40}})(?![A-Za-z0-9/+=])",
    re.IGNORECASE,
)
AZURE_KEY = re.compile(r"(?:AccountKey|SharedAccessKey)=([A-Za-z0-9+/]{43}=(?!=)|[A-Za-z0-9+/]{86}==)", re.IGNORECASE)
AZURE_SIGNATURE = re.compile(r"[?&;](?:sv|se|sp|sr|st|spr|ss|srt)=[^\s\"'<>]*?&sig=([\w%+/=-]{40,})")
TWILIO = re.compile(rf"(?<![A-Za-z0-9])(?:SK|AC){HEX}{{32}}(?![0-9A-Za-z])")
TWILIO_TOKEN = re.compile(rf"auth[_-]?token[\w-]*{ASSIGNED}({HEX}{{32}})(?![0-9A-Za-z])", re.IGNORECASE)
NPM_LOGIN = re.compile(r"/:_authToken=([\w+/=.-]{16,})", re.IGNORECASE)
# A variable in capitals, as .env files and shells have it. Names in small letters are mostly code.
ENVIRONMENT = re.compile(
    r"(?<![A-Za-z0-9])[A-Z][A-Z0-9_]*(?:API_?KEY|ACCESS_?KEY|SECRET_?KEY|PRIVATE_?KEY|AUTH_?KEY|TOKEN|SECRET)"
    r"(?:[\"']\]?)?\s*(?:=|:)\s*[\"']?([A-Za-z0-9_+/-]{24,}+={0,2}+)(?![.(\[{$])"
)
ASSIGNED_KEY = re.compile(r"(?:KEY|TOKEN|SECRET)[\"']?\]?\s*[=:]\s*[\"']?[A-Za-z0-9_+/-]{24}")
BASIC_AUTH = re.compile(
    r"(?<![A-Za-z])[A-Za-z][A-Za-z0-9+.-]{1,30}://[^\s/:@\"'`<>{}()\[\],;|$\\]{0,60}"
    r":([^\s/:@\"'`<>{}()\[\],;|$\\?#]{4,100})@((?:[A-Za-z0-9-]{1,63}\.){0,8}[A-Za-z0-9-]{1,63})"
)
WEAK_PASSWORDS = (
    "admin changeit changeme demo dev dummy foobar guest hello letmein mypass mypassword mysecret mysecretpassword "
    "mysql none pass passw0rd passwd password password1 password123 passwort postgres postgresql pswd pwd rabbitmq "
    "redis root s3cr3t s3cret secret secretpassword supersecret tiger test test123 tester testing token user username "
    "xxxx pass123 userpass dbpass dbpassword db_password api_key apikey key value string mypasswd"
)
LOCAL_HOST = re.compile(
    r"localhost|127\.\d+\.\d+\.\d+|0\.0\.0\.0|host\.docker\.internal|.*\.(?:local|test|invalid|example)"
)
EXAMPLE_HOST = re.compile(
    r"(?:.*\.)?(?:example\.(?:com|net|org)|your[\w-]*\..*|domain\.(?:com|tld)|host|hostname|server)"
)
# The key of Azure's emulator is the same on every machine, and Microsoft's documentation prints it.
PUBLIC_KEYS = ("Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq",)


def is_issued(match: re.Match) -> bool:
    """Whether a vendor may have issued the key."""
    secret = match[match.lastindex or 0]
    return not is_placeholder(re.sub(r"^(?:[A-Za-z0-9]+[-_])+?(?=.{16})", "", secret)) and not is_constant(secret)


def is_constant(secret: str) -> bool:
    """Whether the value is a name such as `hf_transformers_model_for_sequences`, and no random characters."""
    body = re.sub(r"^.*?[-_.]", "", secret) if len(secret) > 24 else secret
    return not re.search(r"\d", body) and body.islower()


def is_private_key(match: re.Match) -> bool:
    body = re.sub(PRIVATE_KEY_GAP, "", match[1])
    return len(body) >= KEY_CHARACTERS and not is_placeholder(body[:KEY_CHARACTERS])


def token_part(part: str) -> object:
    try:
        return json.loads(urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    except ValueError:
        return None


def is_token(match: re.Match) -> bool:
    """Whether a JWT says something: its two parts are JSON, and it is not the one of the documentation."""
    header, payload = (token_part(part) for part in match[0].split(".")[:2])
    if not isinstance(header, dict) or "alg" not in header or not isinstance(payload, dict) or not payload:
        return False
    return payload.get("name") != "John Doe" and payload.get("some") != "payload"


def is_password(match: re.Match) -> bool:
    """Whether an address has a password that somebody uses: no placeholder, and none of one's own machine."""
    password, host = match[1], match[2].lower()
    user = match[0].split("://", 1)[1].split(":", 1)[0]
    if LOCAL_HOST.fullmatch(host) or EXAMPLE_HOST.fullmatch(host) or re.search(r"%(?![0-9A-Fa-f]{2})", match[0]):
        return False
    plain = password.lower()
    return plain != user.lower() and plain not in WEAK_PASSWORDS.split() and not is_placeholder(password + "aZ9")


def is_azure_key(match: re.Match) -> bool:
    return not match[1].startswith(PUBLIC_KEYS) and is_issued(match)


def is_twilio(match: re.Match) -> bool:
    """Whether the text is about Twilio: without that, the form is no different from a digest."""
    around = match.string[max(0, match.start() - 200) : match.end() + 200].casefold()
    return ("twilio" in around or "_sid" in around or "accounts/ac" in around) and is_issued(match)


def is_random(match: re.Match) -> bool:
    """Whether the value of a variable has both digits and letters, and few hyphens, as keys have."""
    value = match[1]
    digits = sum(character.isdigit() for character in value)
    return 0 < digits < len(value) and len(re.findall(r"[-_/]", value)) <= MOST_JOINTS and is_issued(match)


SECRET_KINDS = (
    PrivateKind("SECRET", PRIVATE_KEY, 0, is_private_key, ("private key",)),
    PrivateKind("SECRET", JWT, 0, is_token, ("eyj",)),
    *(
        PrivateKind("SECRET", re.compile(rf"(?<![A-Za-z0-9]){form}", re.ASCII), 0, is_issued, needed)
        for needed, form in FORMS.items()
    ),
    PrivateKind("SECRET", AZURE_KEY, 1, is_azure_key, ("accountkey=", "sharedaccesskey=")),
    PrivateKind("SECRET", AZURE_SIGNATURE, 1, is_issued, ("&sig=",)),
    PrivateKind("SECRET", NPM_LOGIN, 1, is_issued, ("/:_authtoken=",)),
    PrivateKind("SECRET", BASIC_AUTH, 1, is_password, (re.compile(r"://[^\s/@]*:[^\s/@]{4,}@[a-zA-Z0-9]"),)),
    PrivateKind("SECRET", AWS_SECRET, 1, is_issued, (re.compile("(?i:aws)[^\n]*[A-Za-z0-9/+]{40}"),)),
    PrivateKind("SECRET", TWILIO, 0, is_twilio, (re.compile(f"SK{HEX}{{32}}"), re.compile(f"AC{HEX}{{32}}"))),
    PrivateKind("SECRET", TWILIO_TOKEN, 1, is_twilio, ("authtoken", "auth_token", "auth-token")),
    PrivateKind("SECRET", ENVIRONMENT, 1, is_random, (ASSIGNED_KEY,)),
)
