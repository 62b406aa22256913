// probe is the program in the pods of smoke.sh, and its client outside: a server that says who it is, and what a shell
// would otherwise be needed for.
package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"time"
)

const limit = 2 * time.Second

func main() {
	if len(os.Args) < 2 {
		fail("want serve, get, dial, lookup, read, write, hostname, sleep or true")
	}
	args := os.Args[2:]
	switch command := os.Args[1]; {
	case command == "serve" && len(args) == 1:
		serve(args[0])
	case command == "get" && (len(args) == 1 || len(args) == 2):
		get(args)
	case command == "dial" && len(args) == 1:
		conn, err := net.DialTimeout("tcp", args[0], limit)
		check(err)
		conn.Close()
	case command == "lookup" && len(args) == 1:
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		defer cancel()
		addresses, err := net.DefaultResolver.LookupHost(ctx, args[0])
		check(err)
		fmt.Println(addresses)
	case command == "read" && len(args) == 1:
		data, err := os.ReadFile(args[0])
		check(err)
		fmt.Print(string(data))
	case command == "write" && len(args) == 2:
		check(os.WriteFile(args[0], []byte(args[1]), 0o644))
	case command == "hostname":
		name, err := os.Hostname()
		check(err)
		fmt.Println(name)
	case command == "sleep":
		// Not an empty select: with nothing else to run, Go takes that for a deadlock.
		time.Sleep(1 << 62)
	case command == "true":
	default:
		fail("cannot do %q", os.Args[1:])
	}
}

// serve answers with the host's name; that it may write into dir is shown first.
func serve(dir string) {
	name, err := os.Hostname()
	check(err)
	check(os.WriteFile(dir+"/served-by", []byte(name), 0o644))
	check(http.ListenAndServe(":8080", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, name)
	})))
}

// get fetches a URL, several times on as many connections.
func get(args []string) {
	times := 1
	if len(args) == 2 {
		var err error
		times, err = strconv.Atoi(args[1])
		check(err)
	}
	client := http.Client{Timeout: limit, Transport: &http.Transport{DisableKeepAlives: true}}
	for range times {
		response, err := client.Get(args[0])
		check(err)
		_, err = io.Copy(os.Stdout, response.Body)
		check(err)
		response.Body.Close()
	}
}

func check(err error) {
	if err != nil {
		fail("%v", err)
	}
}

func fail(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "probe: "+format+"\n", args...)
	os.Exit(1)
}
