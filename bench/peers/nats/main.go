// A NATS server with its WebSocket door, in one process, as the broker and the door that viewers come in by.
package main

import (
	"encoding/json"
	"log"
	"net/url"
	"os"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

func host(address string) string {
	parsed, err := url.Parse(address)
	if err != nil {
		log.Fatal(err)
	}
	return parsed.Host
}

func main() {
	nats, err := server.NewServer(&server.Options{
		Host:      "127.0.0.1",
		Port:      server.RANDOM_PORT,
		NoLog:     true,
		Websocket: server.WebsocketOpts{Host: "127.0.0.1", Port: server.RANDOM_PORT, NoTLS: true},
	})
	if err != nil {
		log.Fatal(err)
	}
	go nats.Start()
	if !nats.ReadyForConnections(10 * time.Second) {
		log.Fatal("the server is not ready after 10 s")
	}
	line := map[string]string{"addr": host(nats.WebsocketURL()), "publish": host(nats.ClientURL())}
	if err := json.NewEncoder(os.Stderr).Encode(line); err != nil {
		log.Fatal(err)
	}
	nats.WaitForShutdown()
}
