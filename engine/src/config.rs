//! What configurations of all models are checked by.

use crate::{Error, Result};

/// Refuses the first of `(key, value, least, most)` that is out of its range.
pub(crate) fn check_ranges(ranges: &[(&str, usize, usize, usize)]) -> Result<()> {
    match ranges.iter().find(|(_, found, low, high)| !(low..=high).contains(&found)) {
        Some((key, found, low, high)) => Err(Error::Config(format!("{key} is {found}, expected {low} to {high}"))),
        None => Ok(()),
    }
}
