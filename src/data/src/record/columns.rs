//! Columns of a batch in the making.

use arrow::{
    array::{
        ArrayBuilder, ArrayRef, BooleanBuilder, Float64Builder, Int64Builder, StringBuilder,
        TimestampMicrosecondBuilder,
    },
    datatypes::{DataType, TimeUnit},
};
use collect_api::record::FieldType;

use super::Cell;

/// Arrow type of a column.
pub fn data_type(type_: FieldType) -> DataType {
    match type_ {
        FieldType::String | FieldType::Json => DataType::Utf8,
        FieldType::Int64 => DataType::Int64,
        FieldType::Float64 => DataType::Float64,
        FieldType::Boolean => DataType::Boolean,
        FieldType::Timestamp => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
    }
}

/// One column in the making.
pub enum Column {
    /// Text and JSON.
    Text(StringBuilder),
    /// Integers.
    Int(Int64Builder),
    /// Floating point.
    Float(Float64Builder),
    /// Booleans.
    Bool(BooleanBuilder),
    /// Instants.
    Micros(TimestampMicrosecondBuilder),
}

impl Column {
    /// An empty column of this type.
    pub fn new(type_: FieldType) -> Self {
        match type_ {
            FieldType::String | FieldType::Json => Self::Text(StringBuilder::new()),
            FieldType::Int64 => Self::Int(Int64Builder::new()),
            FieldType::Float64 => Self::Float(Float64Builder::new()),
            FieldType::Boolean => Self::Bool(BooleanBuilder::new()),
            FieldType::Timestamp => Self::Micros(TimestampMicrosecondBuilder::new().with_timezone("UTC")),
        }
    }

    /// Appends a value; one of another type counts as null, which decoding rules out.
    pub fn push(&mut self, cell: &Cell) {
        match (self, cell) {
            (Self::Text(column), Cell::Text(text)) => column.append_value(text),
            (Self::Int(column), Cell::Int(number)) => column.append_value(*number),
            (Self::Float(column), Cell::Float(number)) => column.append_value(*number),
            (Self::Bool(column), Cell::Bool(flag)) => column.append_value(*flag),
            (Self::Micros(column), Cell::Micros(at)) => column.append_value(*at),
            (Self::Text(column), _) => column.append_null(),
            (Self::Int(column), _) => column.append_null(),
            (Self::Float(column), _) => column.append_null(),
            (Self::Bool(column), _) => column.append_null(),
            (Self::Micros(column), _) => column.append_null(),
        }
    }

    /// The finished array.
    pub fn finish(mut self) -> ArrayRef {
        let builder: &mut dyn ArrayBuilder = match &mut self {
            Self::Text(column) => column,
            Self::Int(column) => column,
            Self::Float(column) => column,
            Self::Bool(column) => column,
            Self::Micros(column) => column,
        };
        builder.finish()
    }
}
