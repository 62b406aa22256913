// Package etcd runs one member of etcd inside this binary.
package etcd

import (
	"flag"
	"fmt"
	"net/url"
	"os"
	"os/signal"
	"syscall"

	"go.etcd.io/etcd/server/v3/embed"
)

// Main runs a single member until SIGTERM and returns the exit code. Flags: --data-dir, --client-url, --peer-url.
func Main() int {
	flags := flag.NewFlagSet("etcd", flag.ExitOnError)
	dir := flags.String("data-dir", "", "where the member's data lie")
	client := flags.String("client-url", "http://127.0.0.1:2379", "where clients are served")
	peer := flags.String("peer-url", "http://127.0.0.1:2380", "where peers would be served")
	_ = flags.Parse(os.Args[1:])
	if err := serve(*dir, *client, *peer); err != nil {
		fmt.Fprintf(os.Stderr, "etcd: %v\n", err)
		return 1
	}
	return 0
}

func serve(dir, client, peer string) error {
	clientURL, err := url.Parse(client)
	if err != nil {
		return fmt.Errorf("reading --client-url: %w", err)
	}
	peerURL, err := url.Parse(peer)
	if err != nil {
		return fmt.Errorf("reading --peer-url: %w", err)
	}
	config := embed.NewConfig()
	config.Name = "testbed"
	config.Dir = dir
	config.ListenClientUrls, config.AdvertiseClientUrls = []url.URL{*clientURL}, []url.URL{*clientURL}
	config.ListenPeerUrls, config.AdvertisePeerUrls = []url.URL{*peerURL}, []url.URL{*peerURL}
	config.InitialCluster = config.InitialClusterFromName(config.Name)
	// The data lie in memory and die with the test bed: there is nothing that a sync could save.
	config.UnsafeNoFsync = true
	config.LogLevel = "warn"
	// NewConfig leaves this at zero, and then every request is logged as a slow one.
	config.WarningUnaryRequestDuration = embed.DefaultWarningUnaryRequestDuration
	server, err := embed.StartEtcd(config)
	if err != nil {
		return fmt.Errorf("starting the member: %w", err)
	}
	defer server.Close()
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	select {
	case err := <-server.Err():
		return fmt.Errorf("serving: %w", err)
	case <-stop:
		return nil
	}
}
