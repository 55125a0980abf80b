"""The tour: the article "How GPT3 Works", page by page, computed on a real model.

page.py      what a page is made of; no torch
texts.py     the words, one file for each language
guide.py     computes the pages
"""
