package dev.pacenote.client;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertThrows;

import dev.pacenote.v1.Payload;
import java.math.BigDecimal;
import java.math.BigInteger;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.MethodSource;

class PayloadsTest {
    @Test
    void a_value_comes_back_as_it_was() {
        Map<String, Object> value = new LinkedHashMap<>();
        value.put("text", "zwölf");
        value.put("list", Arrays.asList(1L, 0.5, true, null, List.of(), Map.of()));
        value.put("largest", (1L << 53) - 1);
        value.put("huge", 1e300);
        assertEquals(value, Payloads.value(Payloads.of(value)));
        assertArrayEquals(new byte[] {1, -1}, (byte[]) Payloads.value(Payloads.of(new byte[] {1, -1})));
        assertEquals("as it is", Payloads.value(Payload.newBuilder().setText("as it is").build()));
        assertEquals(Payload.getDefaultInstance(), Payloads.of(null));
        assertNull(Payloads.value(Payload.getDefaultInstance()));
        assertEquals(0.25, Payloads.value(Payloads.of(new BigDecimal("0.25"))));
    }

    static List<Object> noJson() {
        return List.of(
                new Object(), Double.NaN, Float.POSITIVE_INFINITY, 1L << 53, Long.MIN_VALUE,
                BigInteger.TEN.pow(30), new BigDecimal("1e999"), List.of(new int[0]));
    }

    @ParameterizedTest
    @MethodSource
    void noJson(Object value) {
        assertThrows(IllegalArgumentException.class, () -> Payloads.of(value));
        assertThrows(ClassCastException.class, () -> Payloads.of(Map.of(1, 2)));
    }
}
