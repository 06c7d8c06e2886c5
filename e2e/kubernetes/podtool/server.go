package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
)

// pause holds a pod's namespaces, and is the parent of every orphan in them.
func pause([]string) error {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGCHLD)
	for one := range signals {
		if one != syscall.SIGCHLD {
			break
		}
		reap()
	}
	return nil
}

func reap() {
	for {
		if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); pid <= 0 || err != nil {
			return
		}
	}
}

// echo serves until it is killed.
func echo(arguments []string) error {
	address := ":8080"
	if len(arguments) > 0 {
		address = arguments[0]
	}
	socket, err := net.ListenPacket("udp", address)
	if err != nil {
		return err
	}
	host, _ := os.Hostname()
	go echoDatagrams(socket, host)
	return http.ListenAndServe(address, http.HandlerFunc(func(answer http.ResponseWriter, request *http.Request) {
		length, _ := io.Copy(io.Discard, request.Body)
		fmt.Fprintf(answer, "from=%s host=%s path=%s body=%d\n", request.RemoteAddr, host, request.URL.Path, length)
	}))
}

// echoDatagrams answers each with its own first 8 bytes, which tell the sender which one it was, and what was seen.
func echoDatagrams(socket net.PacketConn, host string) {
	buffer := make([]byte, 65536)
	for {
		length, from, err := socket.ReadFrom(buffer)
		if err != nil {
			continue
		}
		answer := append([]byte{}, buffer[:min(length, 8)]...)
		answer = fmt.Appendf(answer, " from=%v host=%s body=%d\n", from, host, length)
		_, _ = socket.WriteTo(answer, from)
	}
}
