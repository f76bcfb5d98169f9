"""timm models: building, heads, freezing, weights, model folders."""
