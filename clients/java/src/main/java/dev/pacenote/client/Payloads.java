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
    private static final long EXACT_MAX = 1L << 53;

    private Payloads() {}

    /**
     * A JSON value, of maps with strings as keys, iterables, strings, numbers, booleans and null within those; bytes
     * as they are; null for no payload. A {@link Payload} and a {@link Value} stay as they are.
     *
     * @param value what it holds
     * @return the payload
     * @throws IllegalArgumentException for what is not JSON, and for integers beyond 2^53, which would lose digits
     */
    public static Payload of(Object value) {
        if (value instanceof Payload payload) {
            return payload;
        }
        Payload.Builder payload = Payload.newBuilder();
        if (value instanceof byte[] bytes) {
            payload.setData(ByteString.copyFrom(bytes));
        } else if (value != null) {
            payload.setJson(json(value));
        }
        return payload.build();
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

    static Struct struct(Map<?, ?> map) {
        Struct.Builder struct = Struct.newBuilder();
        map.forEach((key, element) -> {
            if (!(key instanceof String name)) {
                throw new IllegalArgumentException("a key is no string: " + key);
            }
            struct.putFields(name, json(element));
        });
        return struct.build();
    }

    private static Value json(Object value) {
        Value.Builder json = Value.newBuilder();
        if (value == null) {
            json.setNullValue(NullValue.NULL_VALUE);
        } else if (value instanceof Value same) {
            json.mergeFrom(same);
        } else if (value instanceof String text) {
            json.setStringValue(text);
        } else if (value instanceof Boolean truth) {
            json.setBoolValue(truth);
        } else if (value instanceof Number number) {
            json.setNumberValue(number(number));
        } else if (value instanceof Map<?, ?> map) {
            json.setStructValue(struct(map));
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
        if (!Double.isFinite(rounded)
                || isInteger && new BigInteger(number.toString()).abs().compareTo(BigInteger.valueOf(EXACT_MAX)) > 0) {
            throw new IllegalArgumentException(number + " is no number of JSON, or beyond 2^53: write it as a string");
        }
        return rounded;
    }

    private static Object value(Value json) {
        return switch (json.getKindCase()) {
            case STRING_VALUE -> json.getStringValue();
            case BOOL_VALUE -> json.getBoolValue();
            case NUMBER_VALUE -> {
                double number = json.getNumberValue();
                if (number == Math.rint(number) && Math.abs(number) <= EXACT_MAX) {
                    yield (long) number;
                }
                yield (Object) number;
            }
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
}
