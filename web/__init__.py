"""What the pages are made of: templates, style sheets, scripts and images, installed as data."""
