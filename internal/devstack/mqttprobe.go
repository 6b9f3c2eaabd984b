package devstack

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// probeMQTT connects once with MQTT 5 and leaves again. It succeeds only where
// the broker knows the password, so it cannot take somebody else's broker on
// the same port for ours. It is written out by hand because only the
// legacy_mqtt package may depend on an MQTT client library.
func probeMQTT(ctx context.Context, address, user, password string) (err error) {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	if _, err := conn.Write(connectPacket(user, password)); err != nil {
		return err
	}
	// CONNACK: fixed header, remaining length, acknowledge flags, reason code.
	var ack [4]byte
	if _, err := io.ReadFull(conn, ack[:]); err != nil {
		return err
	}
	if ack[0] != 0x20 {
		return fmt.Errorf("the server at %s answered CONNECT with packet type %d, it is no MQTT broker", address, ack[0]>>4)
	}
	if ack[3] != 0 {
		return fmt.Errorf("the broker at %s refused the connection with reason code 0x%02x", address, ack[3])
	}
	_, err = conn.Write([]byte{0xe0, 0x00}) // DISCONNECT
	return err
}

// connectPacket is an MQTT 5 CONNECT (section 3.1) with clean start, a client
// ID given by the broker, and user name and password.
func connectPacket(user, password string) []byte {
	field := func(b []byte, s string) []byte {
		return append(binary.BigEndian.AppendUint16(b, uint16(len(s))), s...)
	}
	body := field(nil, "MQTT")
	body = append(body, 5, 0xc2, 0, 10, 0) // version, flags, keep alive 10 s, no properties
	body = field(body, "")
	body = field(body, user)
	body = field(body, password)
	// The remaining length fits one byte: names and passwords here are short.
	return append([]byte{0x10, byte(len(body))}, body...)
}
