import sys

from markupsafe import escape


def main():
    print("<p>%s</p>" % escape(sys.argv[1]))
