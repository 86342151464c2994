//! What this host is and allows, observed.
