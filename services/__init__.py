"""The separately deployed services. They never import one another."""
