"""Lines with planted personal data, and with what only looks like it. Every value is invented: test cards, the
registry's example IBANs, example.com, phone numbers kept for fiction where a country has some, national numbers of
python-stdnum's documentation. Tokens are put together here, so that no scanner takes this file for a leak.
"""

from typing import NamedTuple


class Line(NamedTuple):
    """`values` are (kind, text) of all that is to be found in `text`."""

    text: str
    values: tuple[tuple[str, str], ...] = ()


EMAILS = (
    "lan.nguyen@example.com", "j.doe+beer@example.org", "support@mail.example.co.uk", "a@example.net", "O'Hara@example.com",
    "first_last@sub.sub.example.com", "đức@example.vn", "1234567890@example.com", "x-y-z@example.io", "NAME@EXAMPLE.COM",
)  # fmt: skip
PHONES = (
    ("en", "+1 212 555 0147"), ("en", "212-555-0123"), ("en", "(415) 555-0132"), ("en", "1-202-555-0181"), ("en", "+12025550143"),
    ("en", "+44 20 7946 0123"), ("en", "+44 (0)20 7946 0958"), ("en", "+447700900123"), ("en", "+61 491 570 156"), ("en", "+61-491-570-157"),
    ("en", "+49 30 23125 123"), ("en", "+49 (30) 23125-456"), ("en", "+33 1 99 00 12 34"), ("en", "+33639981234"), ("en", "+46 70 174 06 05"),
    ("en", "+84 912 345 678"), ("en", "+84912345678"), ("en", "+81 90-1234-5678"), ("en", "212.555.0199"), ("en", "+353 1 234 5678"),
    ("vi", "0912 345 678"), ("vi", "0987654321"), ("vi", "0912.345.678"), ("vi", "024 3825 1234"), ("vi", "(028) 3822 1234"),
    ("vi", "+84 28 3822 5678"), ("vi", "0356-789-123"), ("vi", "+84-987-654-321"), ("ja", "090-1234-5678"), ("ko", "010-1234-5678"),
)  # fmt: skip
CARDS = (
    "4111111111111111", "4242 4242 4242 4242", "5555555555554444", "5105-1051-0510-5100", "378282246310005", "3714 496353 98431",
    "30569309025904", "3852 000002 3237", "6011111111111117", "6011 0009 9013 9424", "3530111333300000", "3566-0020-2036-0505",
    "2223003122003222", "6200000000000005", "4012888888881881", "4000 0566 5566 5556", "36227206271667", "5200828282828210",
    "6205500000000000004", "4000\u00a00027\u00a06000\u00a03184",
)  # fmt: skip
IBANS = (
    "GB29 NWBK 6016 1331 9268 19", "DE89370400440532013000", "FR14 2004 1010 0505 0001 3M02 606", "ES9121000418450200051332",
    "IT60X0542811101000000123456", "NL91 ABNA 0417 1643 00", "BE68539007547034", "CH93 0076 2011 6238 5295 7", "AT611904300234573201",
    "SE45 5000 0000 0583 9825 7466", "NO9386011117947", "DK5000400440116243", "FI21 1234 5600 0007 85", "PL61109010140000071219812874",
    "PT50000201231234567890154", "IE29AIBK93115212345678", "LU28 0019 4006 4475 0000", "CZ6508000000192000145399",
    "SA0380000000608010167519", "TR330006100519786457841326",
)  # fmt: skip
IDS = (
    ("My DNI is {}.", "54362315K"), ("NIE: {}", "X2482300W"), ("codice fiscale {}", "RCCMNL83S18D969H"),
    ("numéro de sécu : {}", "2 95 10 99 126 111 93"), ("henkilötunnus {}", "131052-308T"), ("personnummer {}", "880320-0016"),
    ("fødselsnummer {}", "15108695088"), ("rijksregisternummer {}", "85.07.30-033.28"), ("CPF {}", "390.533.447-05"),
    ("my PESEL is {}", "44051401359"), ("AHV-Nummer {}", "756.9217.0769.85"), ("身份证号 {}", "360426199101010071"),
    ("주민등록번호 {}", "971013-9019902"), ("CURP: {}", "BOXW310820HNERXN09"), ("T.C. kimlik no: {}", "17291716060"),
    ("mijn BSN is {}", "111222333"), ("SSN {}", "536-90-4399"), ("เลขประจำตัวประชาชน {}", "1-2345-45678-78-1"),
    ("my ID number is {}", "7503305044089"), ("Steuer-ID {}", "36 574 261 809"), ("NHS number {}", "943 476 5870"),
    ("my Aadhaar is {}", "2341 2341 2346"), ("SIN: {}", "123-456-782"), ("TFN {}", "123 456 782"),
    ("CPR-nummer {}", "211062-5629"), ("CCCD của em là {}", "001085012345"), ("số căn cước {}", "079 199 012 345"),
    ("NIK {}", "3171011708450001"), ("CNP {}", "1630615123457"), ("rodné číslo {}", "710319/2745"),
)  # fmt: skip
_B64 = "QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVowMTIzNDU2Nzg5"
SECRETS = (
    "hf_" + "aB3dE5" * 6, "sk-" + "proj-" + "Ab3dE5fG7h" * 4, "AKIA" + "ABCDEFGH12345678", "ghp_" + "a1B2c3" * 6,
    "github_pat_" + "11ABCDE" * 6, "xoxb-" + "123456789012-" + "abcdEFGH1234", "AIza" + "SyA1b2C3d4E5f6G7h8I9j0K1l2M3n4O5p6Q"[:35],
    "eyJ" + "hbGciOiJIUzI1NiJ9.eyJ" + "zdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N", "sk_live_" + "4eC39HqLyjWDarjtT1zdp7dc",
    f"-----BEGIN RSA PRIVATE KEY-----\n{_B64}\n{_B64}==\n-----END RSA PRIVATE KEY-----", "glpat-" + "a1B2c3D4e5F6g7H8i9J0",
    "SG." + "a1B2c3D4e5F6g7H8i9J0kl." + "a1B2c3D4e5F6g7H8i9J0a1B2c3D4e5F6g7H8i9J0kl",
)  # fmt: skip
ASSIGNED = (
    ("password={}", "hunter2x9"), ("my password: {}", "Tr0ub4dor&3"), ('"api_key": "{}"', "9f8e7d6c5b4a3210"), ("mật khẩu: {}", "bialanh2024"),
    ("postgres://brew:{}@db.example.com/beer", "s3cr3t-Brew"), ("Authorization: Bearer {}", "a1b2c3d4e5f6g7h8i9j0k1l2"),
    ("AWS_SECRET_ACCESS_KEY={}", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYzzzzKEY12"), ("pwd = '{}'", "Passport99!"),
)  # fmt: skip
# What stands around a value, by language.
AROUND = {
    "en": ("Please call me at {} after six.", "Reach me: {}", "{} is my number, thanks!", "I am Lan, {}, and I want two crates."),
    "vi": ("Số của em là {} nhé ạ.", "Chị gọi {} giúp em với.", "Liên hệ: {}", "{} là số điện thoại của tôi."),
    "ja": ("電話番号は{}です。ありがとう。",),
    "ko": ("제 번호는 {} 입니다.",),
}  # fmt: skip
CARD_LINES = (
    "My card is {}, exp 12/27.", "Pay with {} please", "{}", "thẻ của em: {} ạ", "Karte {} 123", "I typed {}: it was refused.",
)  # fmt: skip
EMAIL_LINES = (
    "Write to {}.", "my address is {}, thanks", "<{}>", "mailto:{}", "Gửi hóa đơn về {} giúp em nhé", "Contact: {};",
)  # fmt: skip
IBAN_LINES = ("Refund to {} please.", "IBAN: {}", "Chuyển khoản về {} ạ", "{}", "Konto {} (Sparkasse)")

NOTHING = (
    "Order number 1234567890 was shipped.", "Đơn hàng 0912345678901 đã giao.", "Mã đơn: 0987654321", "Invoice 2024-000123-45",
    "Tracking: 1Z999AA10123456784", "Tracking number 9400111899223197428490", "Order 4532015112830366 is late.",
    "Ticket #4111111111111111", "SKU 5012345678900", "EAN 4006381333931", "ISBN 978-3-16-148410-0", "ISBN 0-306-40615-2",
    "ISBN-13: 9780306406157", "ISSN 2049-3630", "Serial ABCD-1234-EFGH-5678", "Serial number 356938035643809", "IMEI 490154203237518",
    "Lô 20241130-01, sê-ri 123456789012", "Giá 1.250.000đ", "Tổng cộng 12.345.678 đồng", "giá 912.345.678 VND", "1.250.000 ₫ một thùng",
    "Total: $1,234,567.89", "It costs 12 345 678 EUR", "€ 1.234.567,89", "¥12,345,678", "Revenue grew from 1,000,000 to 2,500,000.",
    "It brewed 1234567 litres in 2023.", "Công suất 912.345.678 lít", "2024-11-30", "30/11/2024 10:20", "30.11.2024", "11/30/2024 at 5:30",
    "2024-11-30T10:20:30.123456Z", "From 2019-2024 we grew.", "Từ 1800-1900 và 1900 1990", "10:20:30", "Open 09:00-17:30", "timestamp 1700000000",
    "timestamp 1700000000000", "created 1732960000123", "version 1.2.3", "v10.0.19045.3803", "numpy 1.26.4, torch 2.13.0+cu130",
    "Python 3.11.9 (main, Apr 2 2024, 08:25:04)", "192.168.100.200", "10.0.0.1:8080", "http://127.0.0.1:11434/v1", "2001:db8::8a2e:370:7334",
    "MAC 00:1B:44:11:3A:B7", "sha256 e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", "commit a3b8f66ad2dfcf9aa686c29bfdaca",
    "d41d8cd98f00b204e9800998ecf8427e", "123e4567-e89b-12d3-a456-426614174000", "UUID 550e8400-e29b-41d4-a716-446655440000",
    "0.4111111111111111", "pi is 3.14159265358979323846", "10.762622, 106.660172", "loss 2.0833, eval 1.9927", "1e-5 and 6.02214076e23",
    "3/4 of 100", "12 × 34 = 408", "5 + 7 = 12", "+5 points", "+15%", "+1.250.000đ", "x = 123456789", "count: 987654321", "id 12345678901",
    "user_id=99887766554", "ID 3141592653", "page 1234 of 5678", "Room 1204, floor 12", "12 Nguyễn Trãi, Hà Nội 100000", "ZIP 94103-1234",
    "A4 210 x 297 mm", "100-200-300-400", "1234-5678", "12-34-56", "1 2 3 4 5 6 7 8 9 10 11 12", "1, 2, 3, 4, 5, 6, 7, 8, 9, 10",
    "Score 21-19, 19-21, 21-18", "model XJ-2000-4455-66", "Part 81-1234-567", "flight VN1234 on 12 May", "Bus 36, 40, 55 and 109",
    "@lan thanks!", "Follow @white_crane", "me@home", "look@the price", "icon@2x.png", "git@github.com:white/crane.git", "npm i crane@1.2.3",
    "@app.route('/beer')", "a @ b", "5 beers @ 30.000", "user@localhost", "token by token", "The key: be kind", "key=value", "sort(key=len)",
    "max_tokens=128", "password: at least 8 characters", "password=", "password=<your password>", "api_key=YOUR_API_KEY_1", "token = tokenizer.eos_token",
    'api_key=os.environ["KEY1"]', "secret: the yeast", "Bearer of good news", "sk-learn is a library", "scikit-learn sk-1", "hf_transfer",
    "Quên mật khẩu thì làm sao?", "mật khẩu: ********", "postgres://user:password@localhost/db", "http://host:8080/model@v2", "ABCDEFGH", "RSSMRA is a name",
    "HTTP/1.1 200 OK", "AB12 CD34", "COVID19 2020 2021 2022", "BEER2024 SALE50", "DE12 is a road, GB29 another", "Class 12345678A",
    "4111 1111 1111 1112", "1111 2222 3333 4444", "0000 0000 0000 0000", "5555 5555 5555 5555", "GB29 NWBK 6016 1331 9268 18", "123-45-678", "000-12-3456",
)  # fmt: skip
# As people write: two numbers side by side, a date before a number, JSON, separators of all sorts.
MIXED = [
    Line(
        "Fax: +49\u00a030\u00a023125\u2011789, Tel. +49 30 23125-790",
        (("PHONE", "+49\u00a030\u00a023125\u2011789"), ("PHONE", "+49 30 23125-790")),
    ),
    Line("Ngày 02/11/2024 0912 345 678 gọi lại", (("PHONE", "0912 345 678"),)),
    Line("Anh Nam 0903123456 - 0903123457", (("PHONE", "0903123456"), ("PHONE", "0903123457"))),
    Line("Đặt 3 thùng, giá 1.250.000đ, gọi 0981.222.333", (("PHONE", "0981.222.333"),)),
    Line('{"phone": "+84912345678", "qty": 12}', (("PHONE", "+84912345678"),)),
    Line('{"card": 4111111111111111, "cvc": 123}', (("CARD", "4111111111111111"),)),
    Line("Card 4242 4242 4242 4242 123 09/27", (("CARD", "4242 4242 4242 4242"),)),
    Line("Visa:4242-4242-4242-4242;", (("CARD", "4242-4242-4242-4242"),)),
    Line("DE89 3704 0044 0532 0130 00 BIC COBADEFFXXX", (("IBAN", "DE89 3704 0044 0532 0130 00"),)),
    Line("Order 1234567890 for lan@example.com", (("EMAIL", "lan@example.com"),)),
    Line("lan@example.com,nam@example.com", (("EMAIL", "lan@example.com"), ("EMAIL", "nam@example.com"))),
    Line("Call 2125550147 or mail", (("PHONE", "2125550147"),)),
    Line("WhatsApp 0044 20 7946 0123", (("PHONE", "0044 20 7946 0123"),)),
    Line("Ruf mich an: 030 23125 456", (("PHONE", "030 23125 456"),)),
    Line("Mon numéro de téléphone : 01 99 00 12 34", (("PHONE", "01 99 00 12 34"),)),
    Line("the password is hunter2x9", (("SECRET", "hunter2x9"),)),
    Line("my name at example dot com"),
]


# In spellings of their own: small letters, dashes, dots, words for signs, a country that the text around tells.
SPELT = [
    Line("zurück auf de89 3704 0044 0532 0130 00 bitte", (("IBAN", "de89 3704 0044 0532 0130 00"),)),
    Line("gb29nwbk60161331926819", (("IBAN", "gb29nwbk60161331926819"),)),
    Line("IBAN GB29-NWBK-6016-1331-9268-19.", (("IBAN", "GB29-NWBK-6016-1331-9268-19"),)),
    Line("fr14-2004-1010-0505-0001-3m02-606", (("IBAN", "fr14-2004-1010-0505-0001-3m02-606"),)),
    Line("card 4242.4242.4242.4242, exp 12/27", (("CARD", "4242.4242.4242.4242"),)),
    Line("3782.822463.10005", (("CARD", "3782.822463.10005"),)),
    Line("Tél. : 01 99 00 12 34", (("PHONE", "01 99 00 12 34"),)),
    Line("tél 01.99.00.56.78", (("PHONE", "01.99.00.56.78"),)),
    Line("I am in London, ring 07400 123456 after six", (("PHONE", "07400 123456"),)),
    Line("Deliver to SW1A 1AA, 07400123457", (("PHONE", "07400123457"),)),
    Line("Meine Nummer ist 0151 23456789.", (("PHONE", "0151 23456789"),)),
    Line("Ich bin unter 0171/1234567 da, bitte nicht vor acht", (("PHONE", "0171/1234567"),)),
    Line("National Insurance: AB 12 34 56 C", (("ID", "AB 12 34 56 C"),)),
    Line("my NI number is CE123456D", (("ID", "CE123456D"),)),
    Line("anna (at) gmail.com", (("EMAIL", "anna (at) gmail.com"),)),
    Line("Write to anna [at] gmail dot com please", (("EMAIL", "anna [at] gmail dot com"),)),
    Line("anna.b(at)web.de, danke", (("EMAIL", "anna.b(at)web.de"),)),
    Line("j.doe{AT}mail[DOT]example[DOT]org", (("EMAIL", "j.doe{AT}mail[DOT]example[DOT]org"),)),
]
NO_SPELLING = (
    "look (at) the price. It is low", "We met (at) noon, then", "meet [at] ten.", "f(at).b", "array[at] index.html", "user (at) host.invalid",
    "order 07400 123456 from London", "0151 23456789", "07400 123456", "The UK sold 07400 of them", "Bestellung 0151 23456789 ist da, bitte",
    "Rechnung Nr. 0171/1234567 ist nicht bezahlt", "build AB123456C", "AB 12 34 56 C", "NI number BG123456A", "NI number AB123456E",
    "de12 is a road and gb29 another one here", "de89 3704 0044 0532 0130 01", "gb29-nwbk-6016-1331-9268-18", "ab12 cd34 ef56 gh78",
    "4.242.4242.4242", "4242.4242.4242.4243", "1111.2222.3333.4444", "v4.2424.2424.2424", "tél 12", "Le tél est cassé depuis 2019",
    "at) the door (at", "id07 1234 5678", "Sie ist 0151 Jahre alt, und wir nicht",
)  # fmt: skip


def lines() -> list[Line]:
    made = [Line(EMAIL_LINES[i % 6].format(value), (("EMAIL", value),)) for i, value in enumerate(EMAILS * 2)]
    made += [
        Line(AROUND[tongue][i % len(AROUND[tongue])].format(value), (("PHONE", value),))
        for i, (tongue, value) in enumerate(PHONES)
    ]
    made += [Line(CARD_LINES[i % 6].format(value), (("CARD", value),)) for i, value in enumerate(CARDS)]
    made += [Line("card number: 4222222222222", (("CARD", "4222222222222"),))]
    made += [Line(IBAN_LINES[i % 5].format(value), (("IBAN", value),)) for i, value in enumerate(IBANS)]
    made += [Line(text.format(value), (("ID", value),)) for text, value in IDS]
    made += [Line(f"I use {value} for it.", (("SECRET", value),)) for value in SECRETS]
    made += [Line(text.format(value), (("SECRET", value),)) for text, value in ASSIGNED]
    made += [
        Line(f"{email}, {phone}, {card}", (("EMAIL", email), ("PHONE", phone), ("CARD", card)))
        for email, (_, phone), card in zip(EMAILS, PHONES, CARDS, strict=False)
    ]
    return made + MIXED + SPELT + [Line(text) for text in (*NOTHING, *NO_SPELLING)]
