//! Larder: api.
