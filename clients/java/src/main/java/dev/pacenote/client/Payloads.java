package dev.pacenote.client;

import com.google.protobuf.ByteString;
import com.google.protobuf.ListValue;
import com.google.protobuf.NullValue;
import com.google.protobuf.Struct;
import com.google.protobuf.Value;
import dev.pacenote.v1.Payload;
import java.math.BigInteger;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/** Payloads from values of Java and back. */
public final class Payloads {
    // Beyond it doubles, which numbers travel as, do not have every integer.
    private static final double EXACT_END = 1L << 53;

    private Payloads() {}

    /**
     * A JSON value, of maps with strings as keys, iterables, strings, numbers, booleans and null within those; bytes
     * as they are; null for no payload. A {@link Payload} stays as it is.
     *
     * @param value what it holds
     * @return the payload
     * @throws IllegalArgumentException for what is not JSON, and for integers of 2^53 and more, which may lose digits
     * @throws ClassCastException for a key that is no string
     */
    public static Payload of(Object value) {
        if (value instanceof Payload payload) {
            return payload;
        } else if (value instanceof byte[] bytes) {
            return Payload.newBuilder().setData(ByteString.copyFrom(bytes)).build();
        }
        return value == null ? Payload.getDefaultInstance() : Payload.newBuilder().setJson(json(value)).build();
    }

    /**
     * The JSON value, with {@link Long} for integral numbers and {@link Double} for others; the text; or the bytes.
     *
     * @param payload what is to be read
     * @return null where there is none
     */
    public static Object value(Payload payload) {
        return switch (payload.getContentCase()) {
            case JSON -> value(payload.getJson());
            case TEXT -> payload.getText();
            case DATA -> payload.getData().toByteArray();
            case CONTENT_NOT_SET -> null;
        };
    }

    private static Value json(Object value) {
        Value.Builder json = Value.newBuilder();
        if (value == null) {
            json.setNullValue(NullValue.NULL_VALUE);
        } else if (value instanceof String text) {
            json.setStringValue(text);
        } else if (value instanceof Boolean truth) {
            json.setBoolValue(truth);
        } else if (value instanceof Number number) {
            json.setNumberValue(number(number));
        } else if (value instanceof Map<?, ?> map) {
            Struct.Builder struct = Struct.newBuilder();
            map.forEach((key, element) -> struct.putFields((String) key, json(element)));
            json.setStructValue(struct);
        } else if (value instanceof Iterable<?> elements) {
            ListValue.Builder list = ListValue.newBuilder();
            elements.forEach(element -> list.addValues(json(element)));
            json.setListValue(list);
        } else {
            throw new IllegalArgumentException(value.getClass().getName() + " is no JSON");
        }
        return json.build();
    }

    private static double number(Number number) {
        double rounded = number.doubleValue();
        boolean isInteger = number instanceof Long || number instanceof BigInteger;
        if (!Double.isFinite(rounded) || isInteger && Math.abs(rounded) >= EXACT_END) {
            throw new IllegalArgumentException(number + " is no number of JSON, or too large: write it as a string");
        }
        return rounded;
    }

    private static Object value(Value json) {
        return switch (json.getKindCase()) {
            case STRING_VALUE -> json.getStringValue();
            case BOOL_VALUE -> json.getBoolValue();
            case NUMBER_VALUE -> number(json.getNumberValue());
            case STRUCT_VALUE -> {
                Map<String, Object> map = new LinkedHashMap<>();
                json.getStructValue().getFieldsMap().forEach((key, element) -> map.put(key, value(element)));
                yield map;
            }
            case LIST_VALUE -> {
                List<Object> list = new ArrayList<>();
                json.getListValue().getValuesList().forEach(element -> list.add(value(element)));
                yield list;
            }
            case NULL_VALUE, KIND_NOT_SET -> null;
        };
    }

    private static Object number(double number) {
        if (number == Math.rint(number) && Math.abs(number) < EXACT_END) {
            return (long) number;
        }
        return number;
    }
}
