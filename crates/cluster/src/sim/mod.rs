//! The simulator: a whole fleet in memory, under faults, driven by a seed.
