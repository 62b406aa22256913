//! Larder: proxy.
