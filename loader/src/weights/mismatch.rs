use std::collections::BTreeMap;
use std::fmt;

/// How the tensors found differ from those expected: everything at once.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Mismatch {
    /// Expected, not found: name and expected shape.
    pub missing: Vec<(String, Vec<usize>)>,
    /// Found, not expected: name and shape found.
    pub unknown: Vec<(String, Vec<usize>)>,
    pub misshaped: Vec<Misshaped>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Misshaped {
    pub name: String,
    pub expected: Vec<usize>,
    pub found: Vec<usize>,
}

/// Names printed of each kind.
const LISTED: usize = 10;

impl Mismatch {
    pub fn new(expected: &BTreeMap<String, Vec<usize>>, found: &BTreeMap<String, Vec<usize>>) -> Self {
        let mut mismatch = Self::default();
        for (name, expected) in expected {
            match found.get(name) {
                None => mismatch.missing.push((name.clone(), expected.clone())),
                Some(found) if found != expected => {
                    mismatch.misshaped.push(Misshaped { name: name.clone(), expected: expected.clone(), found: found.clone() })
                }
                Some(_) => {}
            }
        }
        mismatch.unknown = found.iter().filter(|(n, _)| !expected.contains_key(*n)).map(|(n, s)| (n.clone(), s.clone())).collect();
        mismatch
    }

    pub fn is_empty(&self) -> bool {
        self.missing.is_empty() && self.unknown.is_empty() && self.misshaped.is_empty()
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let named = |list: &[(String, Vec<usize>)]| list.iter().map(|(n, s)| format!("{n} {s:?}")).collect();
        let groups: [(&str, Vec<String>); 3] = [
            ("missing", named(&self.missing)),
            ("unknown", named(&self.unknown)),
            ("of the wrong shape", self.misshaped.iter().map(|m| format!("{} {:?}, expected {:?}", m.name, m.found, m.expected)).collect()),
        ];
        let mut separator = "";
        for (what, names) in groups.iter().filter(|(_, names)| !names.is_empty()) {
            write!(f, "{separator}{} {what}: {}", names.len(), names[..names.len().min(LISTED)].join("; "))?;
            if names.len() > LISTED {
                write!(f, "; and {} more", names.len() - LISTED)?;
            }
            separator = " | ";
        }
        Ok(())
    }
}
