"""Texts with personal data and texts that only look so. All people, numbers and addresses in them are made up."""

# {what <…> replaces: the data}. Phone numbers are grouped by country.
EMAILS = """anna.schmidt@gmail.com jürgen.müller@web.de zhang.wei@163.com m.rossi+liste@libero.it j_doe77@yahoo.co.uk
o'neill@tcd.ie claire.dupont@orange.fr p.garcia@correo.ugr.es rui-costa@sapo.pt info@baeckerei-huber.at
k.nowak@uw.edu.pl hello@studio-nord.io team@kiosk.berlin s.patel@iitb.ac.in 123456@qq.com tanaka@u-tokyo.ac.jp
presse@münchen-messe.de ana.silva@usp.br r.jansen@xs4all.nl office@notar-wien.co.at lea@lea-photo.ch x.y@z.museum
admin@nord-bau.de sales@hafen-logistik.eu mail@kerstin-wolf.de"""
INTERNATIONAL = """+49 30 901820|+4915112345678|+49 (0)89 2180-0|+44 20 7946 0018|+44 7911 123456|+33 1 42 68 53 00
+33 6 12 34 56 78|+39 06 6982 1234|+39 347 123 4567|+34 912 345 678|+34612345678|+351 21 790 0000|+351 912 345 678
+1 212 555 0187|+1 (415) 555-2671|+1-604-555-0134|+91-98765-43210|+91 22 2778 1234|+86 138 1234 5678|+86 10 6552 9988
+81 3-3224-9999|+81 90-1234-5678|+55 11 96123-4567|+31 20 624 1111|+43 1 52524|+41 44 668 18 00|+48 22 695 29 00
+61 2 9374 4000|+52 55 5093 0500|+27 21 402 4000|+46 8 508 29 000|+32 2 548 43 11|0049 30 901820|0033 1 42 68 53 00
0044 20 7946 0018"""
# Without the code of the country, after a word that names a phone.
NATIONAL = """(212) 555-0187|212-555-0187|212.555.0187|2125550187|1-212-555-0187|030 901820|089/2180-0|0151 12345678
0711 2161234|020 7946 0018|07911 123456|0161 496 0123|01 42 68 53 00|06.12.34.56.78|0612345678|912 345 678|612 34 56 78
06 6982 1234|347 123 4567|21 790 0000|98765 43210|022 2778 1234|13812345678|010-65529988|(11) 96123-4567|020 624 1111
044 668 18 00|01 52524 123|22 695 29 00|02 9374 4000|03-3224-9999|090-1234-5678"""
NATIONAL_CONTEXTS = ("Phone: {}", "You can reach me at {} after six.", "Mein Telefon: {}", "Tel. {}")
BARE = "(212) 555-0187|(415) 555-2671|646-555-0143|305.555.0166|01 42 68 53 00|06 12 34 56 78|04-91-13-89-00"
IBANS = """DE89 3704 0044 0532 0130 00|GB82WEST12345698765432|FR14 2004 1010 0505 0001 3M02 606|AT611904300234573201
CH93 0076 2011 6238 5295 7|ES91 2100 0418 4502 0005 1332|IT60X0542811101000000123456|NL91ABNA0417164300
PT50 0002 0123 1234 5678 9015 4|BE68 5390 0754 7034|PL61109010140000071219812874|SE4550000000058398257466"""
CARDS = "4111 1111 1111 1111|5105-1051-0510-5100|3782 822463 10005|6011 0009 9013 9424|4012 8888 8888 1881"
CARD_SAID = "my card is 4111111111111111|Visa 4012888888881881|Kreditkarte: 5105105105105100"
SSNS = "SSN 078-05-1120|social security number 212-09-9998|her SSN is 431-52-8810"
IPS = """host 93.184.216.34|ssh root@ 91.198.174.192|server 185.199.108.153|the IP was 203.0.114.7|ping 142.250.185.78
client 178.63.12.9 connected|from 87.122.4.201 port 22|blocked 176.9.64.101 twice|see 93.184.216.35:8080 or ask
2606:2800:220:1:248:1893:25c8:1946|2a02:8106:21:4e00::7|address 2001:67c:2e8:22::c100:68b"""
CONTEXTS = ("{}", "Reach me: {}, thanks.", "Please write to {} or come by.", '{{"contact": "{}"}}')

ORDINARY = r"""
def forward(x, self): h = x@self.weight.t(); return h@self.out.T
y = x@self.w
z = A@B.T + b
loss = (q@k.transpose(-2, -1))
c = a @ b.reshape(-1)
w@model.head.weight
x@np.linalg.inv(y)
Put logo@2x.png and logo@3x.png next to logo.png.
icon@2x.webp, splash@3x.jpg
background: url("hero@2x.jpg")
git clone git@github.com:python/cpython.git
git remote add origin git@gitlab.acme.io:team/app.git
scp dist.zip deploy@web1.acme.io:/srv/app
npm install left-pad@1.3.0 react@next.js
npm i @types/node@20.11.5 lodash@^4.17.21
yarn add vue@3.4.0
uses: actions/checkout@v4
pip install pkg@git+https://github.com/acme/pkg.git
import x from "https://cdn.acme.io/npm/d3@7.8.5/+esm"
docker pull alpine@sha256:0123
@app.route('/x')
@pytest.mark.skip
@pytest.fixture(scope="module")
@property
@functools.lru_cache(maxsize=None)
@click.option("--name")
@dataclass(frozen=True)
@Override public String toString() { return name; }
@media (max-width: 600px) { a { color: red } }
@import url("style.css");
@param name the user's name
@return the sum
@RestController class A {}
Write to jane@example.com or user@host.test.
Mail: name@domain.tld or your.name@company.com
your-email@domain.com
user@example.org, admin@example.net
someone@mail.example
root@localhost
me@laptop.local
foo@bar.com
email@yourdomain.com
Thanks @anna and cc @bob.smith!
Follow us @studio.nord on the network.
The price is 3 @ 4.50 each.
An address has the form local@domain.
[email protected]
if "@" in address: local, domain = address.split("@")
re.match(r"[^@]+@[^@]+\.[^@]+", text)
pattern = r"^[\w.+-]+@[\w-]+\.[\w.-]+$"
mailto:?subject=Hello
ssh-rsa AAAA me@host
postgres://u@db/app
2024-01-14 first
+2024-01-15 second
+20240116
The meeting is on 14.01.2024 at 10:30.
Due 01/15/2024, paid 02/20/2024.
2024-01-15T10:00:00+01:00 and +0530, GMT+2
1999-12-31 23:59:59.999
20240115103000
From 2019-2024 he lived in Rome.
12.03.2021 - 14.05.2022
The years 1914-1918 and 1939-1945
[12:00:00:123] start
time 12:30:45, then 13:05:10
0:00:01.234567
Chrome/120.0.6099.109 and driver 31.0.15.3623, build 10.0.19045.3803
assembly version 4.2.1.17
Version 98.0.4.2 is out
v120.0.60.9
firmware 3.14.15.92
numpy 1.26.4, torch 2.13.0, cuda 12.4.1
Python 3.11.2 (main, Mar 13 2023)
Release 115.2.1.3 fixes this.
glibc-2.31.0.1
>=1.2.3,<2.0.0
OpenSSL 1.1.1.20
See section 5.1.2.3 and 12.4.1.1 of the standard.
§ 14.2.1.1 applies.
Chapter 2.4.6.8 describes it.
Abschnitt 3.2.1.4 nennt die Ausnahmen.
RFC 2822 section 3.4.1
OID 1.3.6.1.4.1.311
1.2.3.4
table 4.5.6.7
Set the DNS server to 8.8.8.8 or 1.1.1.1.
nameserver 9.9.9.9
2606:4700:4700::1111 answers fast.
255.255.255.0, 127.0.0.1, 192.168.0.1, 0.0.0.0
10.0.0.0/8 and 172.16.0.0/12
bind 0.0.0.0:8080
169.254.169.254 gives the metadata
192.0.2.1 is for documentation, as are 198.51.100.7 and 203.0.113.9
fe80::1 and ::1 and 2001:db8::1
256.300.1.1 is no address
ip = "10.1.2.3"
server 192.168.178.1
x = +12345678 ; y = a +10000000
What is 5 +123 456 789? And +1 000 000 000?
+49,99 EUR; 100-200-3000 steps
1 000 000 and 2 500 000 people
x = y+12345678901
n = 1234567890
m = a[1]+123456789012
return 2147483647
0xdeadbeef + 4294967295
3.141592653589793
phi = 1.6180339887
6.02214076e23
range(1000000000)
time.sleep(1234567)
seed = 2125550187
id: 13812345678
user_id=9876543210
timestamp 1705312800
The hash is 0612345678.
row 030901820
Order part 555-123-4567 from the catalogue.
Order 212-555-0187 was sent today.
Your order number is 2125550187.
Invoice 4930901820
Rechnungsnummer 030 901820
Bestellnummer: 0151 12345678
Artikel 089 21801234
Kundennummer 4915112345678
numéro de commande 01 42 68 53 00
Facture n° 0142685300
Pedido 912 345 678
Fattura 06 6982 1234
Encomenda 21 790 0000
Tracking 98765 43210
Ticket 646-555-0143
Serial 212-555-0187
SKU 305-555-0166
ISBN 978-3-16-148410-0, ISSN 1234-5679
ISBN-10 0-306-40615-2
ISBN 9783161484100
EAN 4006381333931
UUID 123e4567-e89b-12d3-a456-426614174000
DOI 10.1000/182
arXiv:2305.14314
case 2023-04567
PMID 12345678
US patent 10,123,456
Part no. 100-200-3000
Model 123-456-7890
Account 12345678901
Product 4111-2222-3333-4444
Order 4111 1111 1111 1111
4111 1111 1111 1112
1234 5678 9012 3456
4111111111111111
[4111, 1111, 1111, 1111]
0000 0000 0000 0000
5500005555555559 rows
section 078-05-1120
lot 212-09-9999
123-45-6789 is no number of ours
MAC 00:1A:2B:3C:4D:5E, hash de:ad:be:ef
aa:bb:cc:dd:ee:ff
SHA1 fingerprint 12:34:56:78:9A:BC:DE:F0
std::vector<int> a; ns::a::b::c(); x[::2]; f::e::d::c
a[1:2] b::c x[::2] y[1:2:3]
std::chrono::seconds(5)
foo::bar::baz::qux
Genesis 1:2:3
ratio 3:2:1:1
GB29 is a road; DE12 3456 7890
GB83WEST12345698765432
DE00 3704 0044 0532 0130 00
FR76 is the start
AB12 3456 7890 1234
IT is fun; CH is a country
XX89 3704 0044 0532 0130 00
The code is AA11BB22CC33DD44.
Call f(1, 2, 3) and g(4).
Call me maybe, sang 1000000 people.
call 911 in an emergency
Dial 112 or 110.
Press 1, then 2.
Phone 15 costs 799 euros.
Our hotline is open from 8 to 20.
The telephone was invented in 1876.
text = "12345"
The text has 12000 words.
the mobile app 4.2.1
Der Ruf nach 100 000 Stimmen
Portable 64 bits
It reached 20,000,000 views.
reach 1000000 users by 2025
contact.id == 1234567
signal 11 (SIGSEGV)
Signal at 2400 MHz
texts[0:100], calls 5000000
tel: see below
Telefon und Fax sind neu.
call(10, 20, 30, 40)
call stack 0x7ffee3b0
phone_number = models.CharField(max_length=20)
phone = ""
"phone": "<your phone>"
phone: xxx-xxx-xxxx
The phone weighs 187 g and is 146.7 x 71.5 x 7.8 mm.
Fax machines sold in 1997: 3600000 units
The result is 555-1234.
1-800-FLOWERS
100-200
800-53-171
10-20-30-40
47.376887, 8.541694
40.7128, -74.0060
52.520008 N 13.404954 E
1.000.000,00 EUR
12.345.678,90
$1,234,567.89
-123 + 456 - 7890
555-0100-200-3
2^31 = 2147483648
0.1 + 0.2 = 0.30000000000000004
chr21:33031597-33034038
0123456789
01 02 03 04 05
1 2 3 4 5 6 7 8 9 10
01-02-03-04-05-06
Lotto: 03 14 22 31 40 45
00 11 22 33 44 55 66
00000000 00000001
1010101010101010
0x00112233
Zip 94107-1234
D-10115 Berlin
PO Box 123456
Room 4.1.2, floor 3
Bus 100, 200 and M41
A4 210 x 297
1920x1080@60Hz
1080p@30fps
3@5
a@b
@
@@ -1,7 +1,9 @@
x @ y
C@T.
l33t@h4x
p@ssw0rd
f@ke.
mat@vec.sum()
Q@K.T/math.sqrt(d)
(A@x).dot(b)
tokens@100k.
score: 98.6.4.2
Vol. 12, No. 3, pp. 123-145
pages 1001-1012
Psalm 119.105.1.2
WLAN 802.11.1.1
Temperature -12.5 to +38.2
GMT+0100
UTC+05:30
v2024.01.15.1
2024.1.15.10
tag 2024-01-15.3
sha 9b74c9897bac770ffc029102a200c5de
AWS account 123456789012
SO 8859-1
ISO 27001:2022
DIN 5008
EN 60601-1-2
CAS 7732-18-5
CVE-2021-44228
KB5034441
HTTP 404, 500 and 503
errno 13
port 5432
chmod 755
#123456
rgb(255, 255, 255)
#ff00ff
0 0 * * *
*/5 * * * *
1e-5
lr=2e-4
r=16, alpha=32
The bill of 1.234.567 was paid on 03.04.2023.
Il a 12 345 678 habitants.
Die Zahl 030 901820 steht in der Tabelle.
La población es de 912 345 678.
steps 100 200 300 400
self.call(2125550, 187)
SELECT * FROM t WHERE id = 6123456789
UPDATE t SET n = 912345678
const MAX = 9007199254740991
grep -c "@" mails.txt
awk '{print $1"@"$2}' users.txt
raise ValueError(f"{name}@{host} is no address")
$user@$host
%s@%s
<user>@<host>
{user}@{domain}
test@test.com
name@company.com
a@b.c.d()
B@C.data
grad@self.cache.out
m@cls.weight
img@1.5x.png
sprite@4x.svg
pkg@1.2.3-beta.1
node@18.19.0
v@lue.
at 10:00@office
docs@v2.md
setup@main.py
run@latest.sh
"""


def texts_with_personal_data() -> list[tuple[str, str, str]]:
    """Returns (kind, text, the data in it)."""
    found = []
    for kind, listed in (("EMAIL", EMAILS.split()), ("PHONE", split(INTERNATIONAL)), ("PHONE", split(BARE))):
        found += [(kind, CONTEXTS[n % len(CONTEXTS)].format(data), data) for n, data in enumerate(listed)]
    found += [
        ("EMAIL", f"Mail me: {data}.", data)
        for data in ("anna (at) gmail (dot) com", "k.wolf [at] web [dot] de", "lea(at)lea-photo.ch")
    ]
    for number, data in enumerate(split(NATIONAL)):
        found += [("PHONE", NATIONAL_CONTEXTS[(number + turn) % 4].format(data), data) for turn in range(2)]
    for kind, listed in (("IBAN", IBANS), ("CARD", CARDS)):
        found += [(kind, CONTEXTS[n % len(CONTEXTS)].format(data), data) for n, data in enumerate(split(listed))]
    for kind, listed in (("CARD", CARD_SAID), ("SSN", SSNS), ("IP", IPS)):
        found += [(kind, data, max(data.split(), key=count_digits)) for data in split(listed)]
    return found


def count_digits(word: str) -> int:
    return sum(character.isdigit() for character in word)


def split(listed: str) -> list[str]:
    return listed.replace("\n", "|").split("|")


def texts_without_personal_data() -> list[str]:
    return [line for line in ORDINARY.splitlines() if line]
