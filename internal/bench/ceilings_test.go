package bench

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"testing"
)

func TestSplitCopy(t *testing.T) {
	header := []byte("PGCOPY\n\xff\r\n\x00\x00\x00\x00\x00\x00\x00\x00\x00")
	row := func(n int) []byte {
		b := binary.BigEndian.AppendUint16(nil, 2)
		b = binary.BigEndian.AppendUint32(b, 0xFFFFFFFF) // NULL has no bytes
		value := fmt.Sprintf("row %d", n)
		return append(binary.BigEndian.AppendUint32(b, uint32(len(value))), value...)
	}
	stream := func(rows ...int) []byte {
		b := bytes.Clone(header)
		for _, n := range rows {
			b = append(b, row(n)...)
		}
		return append(b, 0xFF, 0xFF)
	}
	for _, c := range []struct {
		rows []int
		want [][]byte
	}{
		{nil, nil},
		{[]int{1}, [][]byte{stream(1)}},
		{[]int{1, 2}, [][]byte{stream(1, 2)}},
		{[]int{1, 2, 3}, [][]byte{stream(1, 2), stream(3)}},
	} {
		got, err := splitCopy(stream(c.rows...), 2)
		if err != nil || !equalBytes(got, c.want) {
			t.Errorf("%v: %q, %v; want %q", c.rows, got, err, c.want)
		}
	}
	whole := stream(1, 2, 3)
	for n := range len(whole) {
		if _, err := splitCopy(whole[:n], 2); err == nil {
			t.Errorf("the first %d of %d bytes were taken for a whole stream", n, len(whole))
		}
	}
}

func equalBytes(a, b [][]byte) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if !bytes.Equal(a[i], b[i]) {
			return false
		}
	}
	return true
}
