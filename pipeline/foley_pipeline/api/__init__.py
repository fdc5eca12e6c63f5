"""The public API in Python: conversion of messages and errors."""
