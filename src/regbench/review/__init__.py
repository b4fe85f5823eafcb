"""For the reviewer of a pull request, from Git alone: are the results current, and what did the change do?"""
