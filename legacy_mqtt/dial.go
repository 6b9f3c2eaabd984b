package legacy_mqtt

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"time"

	"github.com/gorilla/websocket"
)

// load reads the files into a configuration for a broker at host.
func (c TLSConfig) load(host string) (*tls.Config, error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: c.ServerName}
	if conf.ServerName == "" {
		conf.ServerName = host
	}
	if c.CAFile != "" {
		pem, err := os.ReadFile(c.CAFile)
		if err != nil {
			return nil, fmt.Errorf("read CAFile: %w", err)
		}
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("CAFile %s holds no PEM certificate", c.CAFile)
		}
	}
	if (c.CertFile == "") != (c.KeyFile == "") {
		return nil, errors.New("CertFile and KeyFile belong together; set both or neither")
	}
	if c.CertFile != "" {
		cert, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("load CertFile and KeyFile: %w", err)
		}
		conf.Certificates = []tls.Certificate{cert}
	}
	return conf, nil
}

// dial opens the transport that the URL asks for, within ctx.
func (c Config) dial(ctx context.Context, u *url.URL) (net.Conn, error) {
	var conf *tls.Config
	if secure(u) {
		var err error
		if conf, err = c.TLS.load(u.Hostname()); err != nil {
			return nil, err
		}
	}
	switch u.Scheme {
	case "mqtts":
		d := tls.Dialer{Config: conf}
		return d.DialContext(ctx, "tcp", hostPort(u, "8883"))
	case "ws", "wss":
		return dialWebSocket(ctx, u, conf)
	default:
		var d net.Dialer
		return d.DialContext(ctx, "tcp", hostPort(u, "1883"))
	}
}

func hostPort(u *url.URL, port string) string {
	if p := u.Port(); p != "" {
		port = p
	}
	return net.JoinHostPort(u.Hostname(), port)
}

// dialWebSocket opens MQTT over WebSocket (MQTT 5, section 6).
func dialWebSocket(ctx context.Context, u *url.URL, conf *tls.Config) (net.Conn, error) {
	d := websocket.Dialer{TLSClientConfig: conf, Subprotocols: []string{"mqtt"}, ReadBufferSize: readBuffer}
	ws, _, err := d.DialContext(ctx, u.String(), nil)
	if err != nil {
		return nil, err
	}
	return &wsConn{Conn: ws}, nil
}

// wsConn makes a byte stream of binary WebSocket messages. One goroutine may
// read and another write, as with any net.Conn here (see conn).
type wsConn struct {
	*websocket.Conn
	message io.Reader // what is left of the message being read
}

func (c *wsConn) Read(p []byte) (int, error) {
	for {
		if c.message == nil {
			_, r, err := c.NextReader()
			if err != nil {
				return 0, err
			}
			c.message = r
		}
		n, err := c.message.Read(p)
		if errors.Is(err, io.EOF) {
			c.message, err = nil, nil
		}
		if n > 0 || err != nil {
			return n, err
		}
	}
}

func (c *wsConn) Write(p []byte) (int, error) {
	if err := c.WriteMessage(websocket.BinaryMessage, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (c *wsConn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}
