"""Personal data in conversations: e-mail addresses, phone numbers, payment cards, IBANs, national numbers and
secrets, found by shape and check digits, counted, left out or replaced by placeholders.
"""
