//! vmcore
