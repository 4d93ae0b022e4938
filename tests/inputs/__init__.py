"""Small inputs that the tests make themselves, all in the public domain: nothing of others is stored here."""
