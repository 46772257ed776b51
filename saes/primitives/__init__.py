"""Literary primitives: features that name an emotion, speak as a self, or set a register; alone and in recipes."""
