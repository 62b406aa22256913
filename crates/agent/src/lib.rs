//! Larder: agent.
