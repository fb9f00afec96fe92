//! Holds a JSON form to its schema, both ways: what is in one only fails the test.

use serde_json::Value;

/// Checks a document against a schema, and that the schema says of each property what it is.
///
/// # Panics
/// If they differ.
pub fn check_document(document: &str, schema: &str) {
    let schema: Value = serde_json::from_str(schema).expect("schema");
    check(&serde_json::from_str(document).expect("JSON"), &schema, &schema, "document");
}

/// # Panics
/// If a property has no description.
pub fn check_descriptions(schema: &str) {
    let schema: Value = serde_json::from_str(schema).expect("schema");
    let objects = schema["$defs"].as_object().expect("$defs").values().chain([&schema]);
    for (key, property) in objects.filter_map(|o| o["properties"].as_object()).flatten() {
        let named = property.get("$ref").is_some();
        assert!(named || property["description"].is_string(), "{key} has no description");
    }
}

/// The part of JSON Schema that the schemas use; what it does not know, it refuses.
fn check(value: &Value, schema: &Value, root: &Value, at: &str) {
    if let Some(reference) = schema.get("$ref") {
        let pointer = reference.as_str().expect("$ref").trim_start_matches('#');
        return check(value, root.pointer(pointer).expect(pointer), root, at);
    }
    if let Some(choices) = schema.get("anyOf") {
        let choices = choices.as_array().expect("anyOf");
        assert!(choices[1]["type"] == "null" && choices.len() == 2, "{at}: only `X or null`");
        if !value.is_null() {
            check(value, &choices[0], root, at);
        }
        return;
    }
    let types: Vec<_> = match &schema["type"] {
        Value::Array(types) => types.iter().filter_map(Value::as_str).collect(),
        one => vec![one.as_str().unwrap_or_else(|| panic!("{at}: no type"))],
    };
    let actual = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_u64() && types.contains(&"integer") => "integer",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    assert!(types.contains(&actual), "{at}: {actual}, not {types:?}");
    if let Some(allowed) = schema.get("enum") {
        assert!(allowed.as_array().expect("enum").contains(value), "{at}: {value}");
    }
    match value {
        // By name, as many as there are.
        Value::Object(object) if schema["additionalProperties"].is_object() => {
            for (key, value) in object {
                check(value, &schema["additionalProperties"], root, &format!("{at}.{key}"));
            }
        }
        Value::Object(object) => {
            let properties = schema["properties"].as_object().expect(at);
            assert_eq!(schema["additionalProperties"], false, "{at}");
            for (key, value) in object {
                let at = format!("{at}.{key}");
                let schema = properties.get(key).unwrap_or_else(|| panic!("{at} is not in the schema"));
                check(value, schema, root, &at);
            }
            for key in properties.keys() {
                assert!(object.contains_key(key), "{at}.{key} is in the schema only");
            }
            assert_eq!(schema["required"].as_array().expect(at).len(), properties.len(), "{at}: required");
        }
        Value::Array(items) => {
            for item in items {
                check(item, &schema["items"], root, &format!("{at}[]"));
            }
        }
        _ => {}
    }
}
