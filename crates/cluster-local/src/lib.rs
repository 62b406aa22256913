//! Larder: cluster-local.
