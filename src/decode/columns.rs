//! Columns that grow row by row and can take the last row back.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, BooleanArray, BooleanBufferBuilder, Float32Array, Float64Array, NullBufferBuilder, PrimitiveArray,
    StringViewArray, TimestampMicrosecondArray,
};
use arrow::buffer::{Buffer, NullBuffer, ScalarBuffer};
use arrow::datatypes::{
    ArrowPrimitiveType, Date32Type, Int8Type, Int16Type, Int32Type, Int64Type, TimestampMicrosecondType,
};
use arrow::error::ArrowError;

use super::schema::{Column, Kind};
use crate::view;

/// The view's buffer numbers: the messages as they came, and the strings that had escapes.
const ARENA: u32 = 0;
const ESCAPED: u32 = 1;

/// One column's values so far. A row is appended by exactly one `push_*` on each column, in any order.
pub struct ColumnBuilder {
    kind: Kind,
    len: usize,
    values: Values,
    /// Only for columns that may be null.
    nulls: Option<NullBufferBuilder>,
}

/// Integers, dates and times are all checked and kept as 64 bits; the narrowing at the end cannot fail.
enum Values {
    Text(Vec<u128>),
    Integer(Vec<i64>),
    Float(Vec<f64>),
    Boolean(BooleanBufferBuilder),
}

impl ColumnBuilder {
    pub fn new(column: &Column, capacity: usize) -> Self {
        let values = match column.kind {
            Kind::Text => Values::Text(Vec::with_capacity(capacity)),
            Kind::Float32 | Kind::Float64 => Values::Float(Vec::with_capacity(capacity)),
            Kind::Boolean => Values::Boolean(BooleanBufferBuilder::new(capacity)),
            Kind::Int8 | Kind::Int16 | Kind::Int32 | Kind::Int64 => Values::Integer(Vec::with_capacity(capacity)),
            Kind::Timestamp | Kind::TimestampTz | Kind::Date => Values::Integer(Vec::with_capacity(capacity)),
        };
        Self { kind: column.kind, len: 0, values, nulls: column.nullable.then(|| NullBufferBuilder::new(capacity)) }
    }

    /// What the column holds.
    #[inline]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    #[inline]
    pub fn push_view(&mut self, view: u128) {
        if let Values::Text(values) = &mut self.values {
            values.push(view);
            self.pushed(true);
        }
    }

    #[inline]
    pub fn push_integer(&mut self, value: i64) {
        if let Values::Integer(values) = &mut self.values {
            values.push(value);
            self.pushed(true);
        }
    }

    pub fn push_float(&mut self, value: f64) {
        if let Values::Float(values) = &mut self.values {
            values.push(value);
            self.pushed(true);
        }
    }

    pub fn push_boolean(&mut self, value: bool) {
        if let Values::Boolean(values) = &mut self.values {
            values.append(value);
            self.pushed(true);
        }
    }

    /// Only for columns that may be null.
    pub fn push_null(&mut self) {
        match &mut self.values {
            Values::Text(values) => values.push(0),
            Values::Integer(values) => values.push(0),
            Values::Float(values) => values.push(0.0),
            Values::Boolean(values) => values.append(false),
        }
        self.pushed(false);
    }

    /// Forgets everything from row `len` on.
    pub fn truncate(&mut self, len: usize) {
        if self.len <= len {
            return;
        }
        match &mut self.values {
            Values::Text(values) => values.truncate(len),
            Values::Integer(values) => values.truncate(len),
            Values::Float(values) => values.truncate(len),
            Values::Boolean(values) => values.truncate(len),
        }
        if let Some(nulls) = &mut self.nulls {
            nulls.truncate(len);
        }
        self.len = len;
    }

    /// The Arrow array. `buffers` are what [`Strings::finish`] gave.
    pub fn finish(self, buffers: &Arc<[Buffer]>) -> Result<ArrayRef, ArrowError> {
        let nulls = self.nulls.and_then(NullBufferBuilder::build);
        Ok(match self.values {
            Values::Text(views) => {
                // SAFETY: each view was made by `Strings` of a `str` that lies in the buffer it names (or in the view itself), or
                // is the empty one of a null; `pushed` keeps values and nulls at one length. Looking at every byte once more
                // would cost a tenth of all decoding.
                let array = unsafe { StringViewArray::new_unchecked(views.into(), buffers.clone(), nulls) };
                debug_assert!(array.to_data().validate_full().is_ok(), "a view of what is not there");
                Arc::new(array)
            }
            Values::Boolean(values) => Arc::new(BooleanArray::new(values.build(), nulls)),
            Values::Float(values) if self.kind == Kind::Float32 => {
                let narrow: ScalarBuffer<f32> = values.into_iter().map(|value| value as f32).collect();
                Arc::new(Float32Array::try_new(narrow, nulls)?)
            }
            Values::Float(values) => Arc::new(Float64Array::try_new(values.into(), nulls)?),
            Values::Integer(values) => finish_integers(values, self.kind, nulls)?,
        })
    }

    #[inline]
    fn pushed(&mut self, valid: bool) {
        self.len += 1;
        if let Some(nulls) = &mut self.nulls {
            nulls.append(valid);
        }
    }
}

fn finish_integers(values: Vec<i64>, kind: Kind, nulls: Option<NullBuffer>) -> Result<ArrayRef, ArrowError> {
    Ok(match kind {
        Kind::Int8 => narrow::<Int8Type>(values, nulls, |value| value as i8)?,
        Kind::Int16 => narrow::<Int16Type>(values, nulls, |value| value as i16)?,
        Kind::Int32 => narrow::<Int32Type>(values, nulls, |value| value as i32)?,
        Kind::Date => narrow::<Date32Type>(values, nulls, |value| value as i32)?,
        Kind::Timestamp => Arc::new(TimestampMicrosecondArray::try_new(values.into(), nulls)?),
        Kind::TimestampTz => {
            Arc::new(PrimitiveArray::<TimestampMicrosecondType>::try_new(values.into(), nulls)?.with_timezone("+00:00"))
        }
        _ => Arc::new(PrimitiveArray::<Int64Type>::try_new(values.into(), nulls)?),
    })
}

fn narrow<T: ArrowPrimitiveType>(
    values: Vec<i64>,
    nulls: Option<NullBuffer>,
    convert: impl Fn(i64) -> T::Native,
) -> Result<ArrayRef, ArrowError> {
    let values: ScalarBuffer<T::Native> = values.into_iter().map(convert).collect();
    Ok(Arc::new(PrimitiveArray::<T>::try_new(values, nulls)?))
}

/// Where the bytes of decoded strings lie: in the messages themselves, or here if they had escapes.
pub struct Strings {
    arena: Buffer,
    escaped: Vec<u8>,
}

impl Strings {
    /// `arena` holds the messages that are decoded.
    pub fn new(arena: Buffer) -> Self {
        Self { arena, escaped: Vec::new() }
    }

    /// A view of `text`, which lies inside the arena: nothing is copied. (Text from elsewhere would be, and text
    /// behind the first 4 GiB, where a view cannot point.)
    #[inline]
    pub fn borrowed(&mut self, text: &str) -> u128 {
        let offset = (text.as_ptr() as usize).wrapping_sub(self.arena.as_ptr() as usize);
        let inside = offset.checked_add(text.len()).is_some_and(|end| end <= self.arena.len());
        match u32::try_from(offset) {
            Ok(offset) if inside => view::make(text.as_bytes(), ARENA, offset),
            _ => self.copied(text),
        }
    }

    /// A view of a copy of `text`.
    pub fn copied(&mut self, text: &str) -> u128 {
        // Escapes only ever shrink, so all copies together are shorter than the arena.
        let offset = self.escaped.len() as u32;
        if text.len() > view::INLINE {
            self.escaped.extend_from_slice(text.as_bytes());
        }
        view::make(text.as_bytes(), ESCAPED, offset)
    }

    /// Bytes copied so far: where [`Strings::truncate`] may go back to.
    pub fn mark(&self) -> usize {
        self.escaped.len()
    }

    pub fn truncate(&mut self, mark: usize) {
        self.escaped.truncate(mark);
    }

    /// The buffers that the views point into.
    pub fn finish(self) -> Arc<[Buffer]> {
        if self.escaped.is_empty() { [self.arena].into() } else { [self.arena, Buffer::from_vec(self.escaped)].into() }
    }
}
