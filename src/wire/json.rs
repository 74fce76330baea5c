//! Between `google.protobuf.Value` and JSON as serde knows it.

use std::collections::BTreeMap;

use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Value};

use crate::job::limits::JSON_DEPTH_MAX;

/// The JSON value.
///
/// # Errors
/// Where it nests deeper than 30, or holds a number that JSON has no word for.
pub fn from_value(value: Value) -> Result<serde_json::Value, String> {
    from_value_at(value, 0)
}

fn from_value_at(value: Value, depth: usize) -> Result<serde_json::Value, String> {
    if depth > JSON_DEPTH_MAX {
        return Err(format!(
            "nests more than {JSON_DEPTH_MAX} deep: send text with media type application/json"
        ));
    }
    Ok(match value.kind {
        None | Some(Kind::NullValue(_)) => serde_json::Value::Null,
        Some(Kind::BoolValue(value)) => value.into(),
        Some(Kind::StringValue(value)) => value.into(),
        Some(Kind::NumberValue(number)) => match serde_json::Number::from_f64(number) {
            Some(number) => number.into(),
            None => {
                return Err(format!(
                    "has the number {number}, which JSON cannot say: send text with media type application/json"
                ));
            }
        },
        Some(Kind::ListValue(list)) => list
            .values
            .into_iter()
            .map(|item| from_value_at(item, depth + 1))
            .collect::<Result<Vec<_>, _>>()?
            .into(),
        Some(Kind::StructValue(fields)) => fields
            .fields
            .into_iter()
            .map(|(name, item)| Ok((name, from_value_at(item, depth + 1)?)))
            .collect::<Result<serde_json::Map<_, _>, String>>()?
            .into(),
    })
}

/// The protobuf value. Integers beyond 2^53 lose digits: protobuf has doubles only.
pub fn to_value(value: serde_json::Value) -> Value {
    let kind = match value {
        serde_json::Value::Null => Kind::NullValue(0),
        serde_json::Value::Bool(value) => Kind::BoolValue(value),
        serde_json::Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or_default()),
        serde_json::Value::String(value) => Kind::StringValue(value),
        serde_json::Value::Array(items) => Kind::ListValue(ListValue {
            values: items.into_iter().map(to_value).collect(),
        }),
        serde_json::Value::Object(fields) => Kind::StructValue(to_struct(fields)),
    };
    Value { kind: Some(kind) }
}

/// The protobuf form of named values.
pub fn to_struct(fields: serde_json::Map<String, serde_json::Value>) -> Struct {
    let fields: BTreeMap<_, _> = fields
        .into_iter()
        .map(|(name, value)| (name, to_value(value)))
        .collect();
    Struct { fields }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_survives_the_way_there_and_back() {
        let json = serde_json::json!({"a": [1.5, "x", null, true, {"b": {}}], "c": []});
        assert_eq!(from_value(to_value(json.clone())), Ok(json));
    }

    #[test]
    fn a_number_that_json_cannot_say_is_refused_with_advice() {
        for number in [f64::NAN, f64::INFINITY] {
            let value = Value {
                kind: Some(Kind::NumberValue(number)),
            };
            let error = from_value(value).expect_err("not JSON");
            assert!(error.contains("application/json"), "{error}");
        }
    }

    #[test]
    fn nesting_is_bounded_before_the_stack_is() {
        let nested = |depth| {
            (0..depth).fold(to_value(serde_json::json!(1)), |inner, _| Value {
                kind: Some(Kind::ListValue(ListValue {
                    values: vec![inner],
                })),
            })
        };
        assert!(from_value(nested(JSON_DEPTH_MAX)).is_ok());
        assert!(from_value(nested(JSON_DEPTH_MAX + 1)).is_err());
    }
}
