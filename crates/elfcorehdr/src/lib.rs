//! elfcorehdr
