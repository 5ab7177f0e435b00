"""The full profile: all methods on all validation cases with a mask, and what follows for the choice of one."""
