// Podtool is what the pods of the tests run: one static program, standard library only.
//
//	podtool pause                                   waits for a signal, reaps orphans
//	podtool echo [ADDRESS]                          TCP (HTTP) and UDP: answers with the source address it saw
//	podtool get [-t SECONDS] [-n TRIES] [-k] URL    prints what the URL answers
//	podtool udp [-t SECONDS] [-n TRIES] HOST:PORT   one datagram to an echo, prints the answer
//	podtool ping [-n COUNT] [-i MILLISECONDS] HOST:PORT
//	                                                datagrams to an echo at a steady pace; a line of JSON at the end (or on SIGTERM)
//	podtool resolve NAME                            prints its addresses
//	podtool api PATH                                asks the API server as a pod does: Service name, token and CA of the pod
package main

import (
	"fmt"
	"os"
)

func main() {
	if len(os.Args) < 2 {
		fail(fmt.Errorf("no command"))
	}
	commands := map[string]func([]string) error{
		"pause": pause, "echo": echo, "get": get, "udp": udp, "ping": ping, "resolve": resolve, "api": api,
	}
	command, found := commands[os.Args[1]]
	if !found {
		fail(fmt.Errorf("no command %q", os.Args[1]))
	}
	fail(command(os.Args[2:]))
}

func fail(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "podtool:", err)
		os.Exit(1)
	}
}
