"""When to cut: rules, the cadence that an objective asks for, and the judgement whether it holds. Pure."""
