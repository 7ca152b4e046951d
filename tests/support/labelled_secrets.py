"""Texts with a secret and texts without one, written from the forms that vendors document.

Every secret is put together at run time, so that no scanner takes this file for a leak.
"""

import base64
import json
import random
import string

LOWER, UPPER, DIGITS = string.ascii_lowercase, string.ascii_uppercase, string.digits
B62, HEX, URL = LOWER + UPPER + DIGITS, DIGITS + "abcdef", LOWER + UPPER + DIGITS + "_-"
# {vendor's key: its parts: a text as it is, or (number of characters, alphabet)}
KEYS = {
    "github classic": ("gh", "p_", (36, B62)),
    "github oauth": ("gh", "o_", (36, B62)),
    "github server": ("gh", "s_", (36, B62)),
    "github refresh": ("gh", "r_", (76, B62)),
    "github fine-grained": ("github", "_pat_", (22, B62), "_", (59, B62)),
    "gitlab personal": ("gl", "pat-", (20, URL)),
    "gitlab deploy": ("gl", "dt-", (20, URL)),
    "gitlab runner": ("gl", "rt-", (20, URL)),
    "hugging face": ("h", "f_", (34, LOWER + UPPER)),
    "hugging face with digits": ("h", "f_", (34, B62)),
    "google api": ("AI", "za", "Sy", (33, URL)),
    "google oauth secret": ("GOC", "SPX-", (28, URL)),
    "google access": ("ya", "29.", "a0Af", (120, URL)),
    "google refresh": ("1/", "/0", "3", (60, URL)),
    "anthropic": ("sk-", "ant-", "api03-", (93, URL), "AA"),
    "anthropic admin": ("sk-", "ant-", "admin01-", (93, URL), "AA"),
    "openai old": ("sk", "-", (20, B62), "T3Blbk", "FJ", (20, B62)),
    "openai project": ("sk", "-proj-", (74, URL), "T3Blbk", "FJ", (74, URL)),
    "openai service": ("sk", "-svcacct-", (58, URL), "T3Blbk", "FJ", (58, URL)),
    "openai admin": ("sk", "-admin-", (58, URL), "T3Blbk", "FJ", (58, URL)),
    "openrouter": ("sk", "-or-v1-", (64, HEX)),
    "groq": ("gs", "k_", (52, B62)),
    "xai": ("xa", "i-", (80, B62)),
    "perplexity": ("pp", "lx-", (48, B62)),
    "replicate": ("r", "8_", (37, B62)),
    "nvidia": ("nv", "api-", (64, URL)),
    "npm": ("np", "m_", (36, B62)),
    "pypi": ("py", "pi-Ag", "EIcHlwaS5vcmc", (150, URL)),
    "rubygems": ("ruby", "gems_", (48, HEX)),
    "docker": ("dc", "kr_pat_", (27, URL)),
    "atlassian": ("AT", "ATT3x", "FfGF0", (170, URL), "=", (8, "0123456789ABCDEF")),
    "slack bot": ("xo", "xb-", (12, DIGITS), "-", (13, DIGITS), "-", (24, B62)),
    "slack user": ("xo", "xp-", (12, DIGITS), "-", (12, DIGITS), "-", (13, DIGITS), "-", (32, HEX)),
    "slack app": ("xa", "pp-1-A", (10, UPPER + DIGITS), "-", (13, DIGITS), "-", (64, HEX)),
    "slack webhook": (
        "https://hooks.sl",
        "ack.com/services/T",
        (10, UPPER + DIGITS),
        "/B",
        (10, UPPER + DIGITS),
        "/",
        (24, B62),
    ),
    "discord bot": ("MT", (24, B62), ".G", (5, URL), ".", (38, URL)),
    "discord webhook": ("https://disc", "ord.com/api/webhooks/1", (18, DIGITS), "/", (68, URL)),
    "telegram": ("7", (9, DIGITS), ":A", "A", (33, URL)),
    "sendgrid": ("S", "G.", (22, URL), ".", (43, URL)),
    "mailgun": ("ke", "y-", (32, HEX)),
    "mailchimp": ((32, HEX), "-u", "s14"),
    "stripe live": ("sk", "_live_", (24, B62)),
    "stripe live, new": ("sk", "_live_51", (97, B62)),
    "stripe test": ("sk", "_test_", (24, B62)),
    "stripe restricted": ("rk", "_live_", (24, B62)),
    "stripe webhook": ("wh", "sec_", (32, B62)),
    "square access": ("sq", "0atp-", (22, URL)),
    "square secret": ("sq", "0csp-", (43, URL)),
    "square production": ("EA", "AA", (60, URL)),
    "shopify": ("shp", "at_", (32, HEX)),
    "shopify secret": ("shp", "ss_", (32, HEX)),
    "digitalocean": ("do", "p_v1_", (64, HEX)),
    "digitalocean oauth": ("do", "o_v1_", (64, HEX)),
    "databricks": ("da", "pi", (32, HEX)),
    "aws": ("AK", "IA", (16, UPPER + "234567")),
    "aws, any digit": ("AS", "IA", (16, UPPER + DIGITS)),
    "azure ad": ((3, B62), "8", "Q~", (34, URL)),
    "vault": ("hv", "s.", (24, B62)),
    "terraform": ((14, B62), ".atlas", "v1.", (67, URL)),
    "pulumi": ("pu", "l-", (40, HEX)),
    "doppler": ("dp", ".pt.", (43, B62)),
    "supabase": ("sb", "p_", (40, HEX)),
    "linear": ("li", "n_api_", (40, B62)),
    "notion": ("nt", "n_", (46, B62)),
    "figma": ("fi", "gd_", (40, URL)),
    "postman": ("PM", "AK-", (24, HEX), "-", (34, HEX)),
    "grafana": ("gl", "sa_", (32, B62), "_", (8, HEX)),
    "new relic": ("NR", "AK-", (27, UPPER + DIGITS)),
    "sentry": ("sntry", "u_", (64, HEX)),
    "airtable": ("pa", "t", (14, B62), ".", (64, HEX)),
}
# {kind: (text around the secret, its parts)}: the surroundings tell that it is one.
SURROUNDED = {
    "aws secret": ("aws_secret_access_key = '{}'", ((40, B62 + "/+"),)),
    "aws secret, environment": ("export AWS_SECRET_ACCESS_KEY={}", ((40, B62 + "/+"),)),
    "azure storage": ("DefaultEndpointsProtocol=https;AccountName=shop;Account" + "Key={};", ((86, B62 + "+/"), "==")),
    "azure bus": ("Endpoint=sb://shop.servicebus.windows.net/;SharedAccess" + "Key={}", ((43, B62 + "+/"), "=")),
    "azure sas": ("https://shop.blob.core.windows.net/a?sv=2022-11-02&se=2027-01-01&sig={}", ((43, B62), "%3D")),
    "twilio key": ("twilio = Client('{}')", ("S", "K", (32, HEX))),
    "twilio token": ("# twilio\nauth_token = '{}'", ((32, HEX),)),
    "npm login": ("//npm.acme.io/:_auth" + "Token={}", ((36, B62),)),
    "mistral": ("MISTRAL_API_KEY={}", ((32, B62),)),
    "cohere": ('CO_API_KEY: "{}"', ((40, B62),)),
    "wandb": ("export WANDB_API_KEY={}", ((40, HEX),)),
    "environment in code": ("os.environ['TAVILY_API_KEY'] = '{}'", ((36, B62),)),
    "login in an address": ("git clone https://anna:{}@repo.acme.io/x.git", ((14, B62),)),
    "login of a database": ("engine = create_engine('postgresql://shop:{}@db7.acme.io:5432/shop')", ((16, B62),)),
    "login of a cluster": ("mongodb+srv://app:{}@cluster0.ab1cd.mongodb.net/?retryWrites=true", ((15, B62),)),
    "login, encoded": ("redis://default:{}@cache.acme.io:6379/0", ((6, B62), "%40", (6, B62))),
}
CONTEXTS = (
    "token = '{}'",
    "Use this key for now: {}. I will change it on Monday.",
    'curl -H "Authorization: Bearer {}" https://api.acme.io/v1/items',
    '{{"name": "prod", "key": "{}", "active": true}}',
)
PLACEHOLDER_CONTEXTS = ("token = '{}'", "Replace {} with the one that you were given.")


def made(parts: tuple, chance: random.Random) -> str:
    return "".join(part if isinstance(part, str) else "".join(chance.choices(part[1], k=part[0])) for part in parts)


def pem(name: str, lines: int, chance: random.Random, joint: str = "\n", headers: str = "") -> str:
    body = joint.join("".join(chance.choices(B62 + "+/", k=64)) for _ in range(lines))
    last = "".join(chance.choices(B62, k=22)) + "=="
    return joint.join([f"-----BEGIN {name}-----", *([headers] if headers else []), body, last, f"-----END {name}-----"])


def jwt(payload: dict, chance: random.Random) -> str:
    parts = (json.dumps(part).encode() for part in ({"alg": "HS256", "typ": "JWT"}, payload))
    head = ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts)
    return f"{head}.{''.join(chance.choices(URL, k=43))}"


def texts_with_secrets() -> list[tuple[str, str, str]]:
    """Returns (kind, text, the secret in it)."""
    chance, found = random.Random(17), []
    for number, (kind, parts) in enumerate(KEYS.items()):
        for turn in range(2):
            secret = made(parts, chance)
            found.append((kind, CONTEXTS[(number + turn) % len(CONTEXTS)].format(secret), secret))
    for kind, (context, parts) in SURROUNDED.items():
        for _ in range(2):
            secret = made(parts, chance)
            found.append((kind, context.format(secret), secret))
    private = "PRIVATE " + "KEY"
    keys = [
        ("private key", pem(f"RSA {private}", 12, chance)),
        ("private key, PKCS 8", pem(private, 24, chance)),
        ("private key of SSH", pem(f"OPENSSH {private}", 5, chance)),
        ("private key, elliptic", pem(f"EC {private}", 2, chance)),
        ("private key with a password", pem(f"RSA {private}", 9, chance, headers="Proc-Type: 4,ENCRYPTED\n")),
        ("private key in JSON", pem(private, 24, chance, "\\n")),
        ("private key of PGP", pem(f"PGP {private} BLOCK", 9, chance, headers="Version: GnuPG v2\n")),
        ("private key, cut", pem(private, 9, chance).partition("-----END")[0].rstrip("\n")),
    ]
    found += [(kind, f"Here it is:\n{key}\nKeep it safe.", key) for kind, key in keys]
    payloads = [{"sub": "u-83021", "role": "admin"}, {"iss": "https://id.acme.io", "exp": 1789000000}, {"uid": 7}]
    found += [("jwt", f"Authorization: Bearer {token}", token) for token in (jwt(one, chance) for one in payloads)]
    return found


def placeholders() -> list[str]:
    """Returns texts in which documentation shows the form of a key without one."""
    found = []
    for number, parts in enumerate(KEYS.values()):
        head = "".join(part for part in parts if isinstance(part, str))
        size = sum(part[0] for part in parts if not isinstance(part, str))
        bodies = (
            "x" * size,
            "X" * size,
            "<your-token>",
            "...",
            "…",
            "*" * size,
            "your-key-here",
            "YOUR_TOKEN",
            "EXAMPLE",
        )
        bodies += (("1234567890" * 20)[:size], ("abcdefghijklmnopqrstuvwxyz" * 8)[:size], ("abc123" * 40)[:size])
        for turn in range(3):
            body = bodies[(number * 3 + turn) % len(bodies)]
            found.append(PLACEHOLDER_CONTEXTS[turn % 2].format(head + body))
    return found


CODE_AND_PROSE = r"""
password = "hunter2"
password = os.environ["DB_PASSWORD"]
token = os.environ.get("GITHUB_TOKEN", "")
api_key = getenv("OPENAI_API_KEY") or sys.exit("set OPENAI_API_KEY")
export OPENAI_API_KEY=$(pass show openai)
export HF_TOKEN="${{ secrets.HF_TOKEN }}"
GITHUB_TOKEN: ${{ secrets.GITHUB_TOKEN }}
MISTRAL_API_KEY=your-api-key-goes-here-please
ANTHROPIC_API_KEY=<your key>
OPENAI_API_KEY="sk-..."
OPENAI_API_KEY=sk-xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx
SECRET_KEY = config("SECRET_KEY", default="change-me-in-production")
SECRET_KEY = 'django-insecure-change-me-before-you-deploy'
AWS_SECRET_ACCESS_KEY=wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY
aws_access_key_id = AKIAIOSFODNN7EXAMPLE
aws_access_key_id = AKIAI44QH8DHBEXAMPLE
aws_secret_access_key = je7MtGbClwBF/2Zp9Utk/h3yCo8nvbEXAMPLEKEY
aws configure set aws_secret_access_key "$KEY"
digest = "d41d8cd98f00b204e9800998ecf8427e"
sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
commit 64fdee3b2f81b655b208f41a5cc42def85ab12cd
etag SK0a1b2c3d4e5f60718293a4b5c6d7e8f9
digest AC0123456789abcdef0123456789abcdef
checksum SK9f86d081884c7d659a2feaa0c55ad015
The row AC5d41402abc4b2a76b9719d911017c592 failed its checksum.
uuid = "123e4567-e89b-12d3-a456-426614174000"
key-0a1b2c3d is the id of the first row
if key.startswith("ghp_"): return "github"
PREFIXES = ("ghp_", "gho_", "ghu_", "ghs_", "ghr_")
TOKEN = re.compile(r"ghp_[A-Za-z0-9]{36}")
pattern: "xox[baprs]-[0-9a-zA-Z-]+"
hf_hub_download(repo_id="org/model", filename="config.json")
hf_transformers_conversion_script_for_llama_models()
HF_HUB_ENABLE_HF_TRANSFER=1
npm_config_registry=https://registry.acme.io
npm_lifecycle_event
sk_test_mode = True
sk-learn is short for scikit-learn
The prefix sk-ant- belongs to Anthropic.
glpat-<token> goes into the header PRIVATE-TOKEN.
AccountKey=<storage-account-key>;EndpointSuffix=core.windows.net
AccountName=devstoreaccount1;AccountKey=Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==
https://shop.blob.core.windows.net/a?sv=2022-11-02&sig=<signature>
https://shop.blob.core.windows.net/a?sv=2022-11-02&sig=xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx
postgresql://user:password@localhost:5432/mydb
postgres://postgres:postgres@db:5432/app
mysql+pymysql://root:root@127.0.0.1/shop
amqp://guest:guest@localhost:5672//
redis://:password@redis:6379/0
mongodb://admin:secret@mongo:27017/
mongodb+srv://<username>:<password>@cluster0.mongodb.net/test
mongodb://myuser:mypassword@host:27017/db
postgresql://scott:tiger@localhost/test
postgresql://app:Xk29dkQz81@localhost/test
http://username:your_password@proxy:8080
http://user:pass@proxy.example.com:3128
ftp://user:passwd@ftp.example.org/file
https://{user}:{token}@github.com/me/repo.git
https://$USER:$TOKEN@github.com/me/repo.git
https://${USER}:${TOKEN}@github.com/me/repo.git
https://%s:%s@api.acme.io/v1
https://x-access-token:${{ github.token }}@github.com/me/repo
https://user:****@host.acme.io/
# scheme://netloc/path;parameters?query#fragment and http://a:80/b@c
see http://host:8080/x?email=a@b.c
url = "http://" + user + ":" + password + "@" + host
urls = ["http://a.acme.io:8080/x", "mail@acme.io"]
proxy("http://acme.io:3128", user="a@b.de")
jdbc:postgresql://db.acme.io:5432/shop?user=a
ssh://git@github.com:22/org/repo.git
git remote add origin git@github.com:org/repo.git
docker run -p 127.0.0.1:8080:80 nginx:1.25@sha256:abc
image: registry.acme.io:5000/app@sha256:9f86d081884c7d659a2feaa0c55ad015
http://[2001:db8::1]:8080/x@y
std::map<std::string, int> a; b = c://d
def body(pem): return pem.replace("-----BEGIN PRIVATE KEY-----", "")
pem = pem.replace("-----END PRIVATE KEY-----", "")
lines = ["-----BEGIN RSA PRIVATE KEY-----"]; lines += wrap(key); lines.append("-----END RSA PRIVATE KEY-----")
return line.startswith("-----BEGIN PRIVATE KEY-----")
f"-----BEGIN PRIVATE KEY-----\n{body}\n-----END PRIVATE KEY-----"
"-----BEGIN RSA PRIVATE KEY-----\nMIIE...\n-----END RSA PRIVATE KEY-----"
-----BEGIN PUBLIC KEY----- MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEAu1SU1LfVLPHCozMxH2Mo -----END PUBLIC KEY-----
if "PRIVATE KEY" in header: raise ValueError("this is a private key")
-----BEGIN PRIVATE KEY----- MIIEvQIBADANBgkqhkiG9w0BAQEFAASC -----END PRIVATE KEY-----
BEGIN_MARK = "-----BEGIN OPENSSH PRIVATE KEY-----"
jwt.decode('eyJhbGciOiJIUzI1NiJ9.e30.ZRrHA1JJJW8opsbCGfG_HACGpVUMN_a9IV7pAx_Zmeo', 'secret', ['HS256'])
eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxMjM0NTY3ODkwIiwibmFtZSI6IkpvaG4gRG9lIiwiaWF0IjoxNTE2MjM5MDIyfQ.SflKxwRJSMeKKF2QT4fwpMeJf36POk6yJV_adQssw5c
jwt.encode({"some": "payload"}, "secret", algorithm="HS256")
eyJ0eXAiOiJKV1QiLCJhbGciOiJIUzI1NiJ9.eyJzb21lIjoicGF5bG9hZCJ9.4twFt5NiznN84AWoo1d7KO1T_yoc0Z6XOpOVswacPZg
A JWT begins with eyJ, because its first part is JSON: header.payload.signature
eyJhbGciOi...
id 123456789:AAbbccddeeffgghhiijjkkllmmnnooppqqr
bot = Bot(token="123456:ABC-DEF1234ghIkl-zyx57W2v1u123ew11")
110201543:AAHdqTcvCH1vGWJxfSeofSAs0K5PALDsaw is the form, said the page: EXAMPLE
ratio 12345678:9 and 10:20:30
xoxb-your-token-here
SLACK_BOT_TOKEN=xoxb-***
https://hooks.slack.com/services/T00000000/B00000000/XXXXXXXXXXXXXXXXXXXXXXXX
https://discord.com/api/webhooks/<id>/<token>
client = Client(account_sid, auth_token)
auth_token = os.environ["TWILIO_AUTH_TOKEN"]
TWILIO_ACCOUNT_SID=ACxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx
twilio: account_sid = "AC00000000000000000000000000000000"
SG.xxxxxxxxxxxxxxxxxxxxxx.yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy
mail.message-us12 and abc-us1
00000000000000000000000000000000-us12
The bucket is in us-east-1, the other one in eu-central-1.
const STRIPE_KEY = process.env.STRIPE_SECRET_KEY
stripe.api_key = "sk_test_..."
pk_live_ keys may be shown; sk_live_ keys may not.
pul-request is misspelt
dp.pt is a pointer: dp.pt.x = 3
self.hvs.append(hvs.value_of_the_next_state_in_line)
pat.match(line).group(0).split(".")
r8_register = 0
gsk_buffer_pool_acquire_buffer
xai-org is an organisation
figd_ and lin_api_ are prefixes
class AIzaKey: pass
GOCSPX- begins a client secret of Google.
ya29.<access token>
refresh_token = "1//0..."
EAAA is not a word
NRAK-XXXXXXXXXXXXXXXXXXXXXXXXXXX
TOKEN = "abcdefghijklmnopqrstuvwxyz012345"
API_TOKEN = "00000000000000000000000000000000"
SECRET = "this-is-a-very-long-secret-2024-for-tests-01"
CSRF_TOKEN = generate_random_string(length=32)
MAX_TOKEN = 4096
NEXT_TOKEN=response["NextContinuationToken"]
PAD_TOKEN: "<pad>"
EOS_TOKEN = tokenizer.eos_token
public_key = "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p"
color: #AKIA00; border: 1px
base64.b64encode(b"user:password")
Authorization: Basic dXNlcjpwYXNzd29yZA==
Authorization: Bearer <token>
"Authorization": f"Bearer {token}"
curl -u user:password https://api.example.com
Never commit a key. Keep it in a vault, and rotate it once a year.
Press the key, then turn it. The token is a coin of brass.
A secret is safe with three people if two of them are away.
primary_key=True, foreign_key="user.id", sort_key="created_at"
translation_key: "checkout.summary.shipping_address.title_2024_v3"
CACHE_KEY = "user-profile-settings-v2-2024-01-15"
MODEL_TOKEN = "mistralai/Mistral-7B-Instruct-v0.3-2024"
The hash of the file is 2fd4e1c67a2d28fced849ee1bb76e7391b93eb12.
data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk
integrity="sha384-oqVuAfXRKap7fdgcCY5uykM6+R9GqQ8K/uxy9rx7HNQlGYl1kPzQho1wx4JwY8wC"
ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGq3hT1y2Vb7m0rC4w9s8KxJ5dPzQeUoLfHnBvXcYtRa me@laptop
"""


def texts_without_secrets() -> list[str]:
    return [*placeholders(), *(line for line in CODE_AND_PROSE.splitlines() if line)]
