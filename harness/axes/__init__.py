"""What a choice on one of the four axes (method, objective, retention, curation) declares, is asked, and is given."""
