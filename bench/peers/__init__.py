"""The same service as others write it; each is a program that takes PostgreSQL's URL and prints its port."""
