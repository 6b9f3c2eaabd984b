package legacy_mqtt

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"time"

	"github.com/eclipse/paho.golang/paho"
)

// Evict cuts off whoever is connected with a client ID: it connects with that ID and
// disconnects. A broker ends the older of two connections with one client ID before it
// answers the newer one (MQTT-3.1.4-3), so once Evict has returned nil, it reads nothing
// more of what the other has sent by then. The other's session ends too. It may come
// back at once; [PublisherOptions].Guard is to keep it from publishing then.
//
// Of cfg it uses the broker, the login and ConnectTimeout, which bounds the whole.
// After an error nothing is known.
func Evict(ctx context.Context, cfg Config, clientID string) error {
	if err := cfg.Validate(); err != nil {
		return err
	}
	if clientID == "" { // the broker would make one up and cut off nobody
		return errors.New("mqtt: evict: the client ID is empty; name who is to be cut off")
	}
	broker, err := url.Parse(cfg.URL)
	if err != nil {
		return fmt.Errorf("mqtt: URL: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, cfg.ConnectTimeout)
	defer cancel()
	if err := evict(ctx, &cfg, broker, clientID); err != nil {
		return fmt.Errorf("mqtt: cut the client %s off at %s: %w", clientID, broker.Host, err)
	}
	return nil
}

func evict(ctx context.Context, cfg *Config, broker *url.URL, clientID string) error {
	raw, err := cfg.dial(ctx, broker)
	if err != nil {
		return connectError(err)
	}
	client := paho.NewClient(paho.ClientConfig{Conn: newConn(raw, func() {}), PacketTimeout: cfg.ConnectTimeout})
	ack, err := client.Connect(ctx, &paho.Connect{
		ClientID: clientID, CleanStart: true, KeepAlive: uint16(cfg.KeepAlive / time.Second),
		Username: cfg.Username, UsernameFlag: cfg.Username != "",
		Password: []byte(cfg.Password), PasswordFlag: cfg.Password != "",
	})
	switch {
	case err != nil && ack != nil:
		return fmt.Errorf("the broker refused: %s", reason(ack.ReasonCode))
	case err != nil:
		return connectError(err)
	}
	// The other is cut off already, whatever becomes of this.
	_ = client.Disconnect(&paho.Disconnect{})
	<-client.Done()
	return nil
}
