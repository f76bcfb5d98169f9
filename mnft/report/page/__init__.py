"""How a page looks: templates, style, script and charts."""
